"""A command of loopscale in a process of its own, which may be killed: forked from a server that has torch imported."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["preloaded"])
LIMIT = 600.0  # seconds after which a life counts as one that hangs
_CALLS = ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate")
_FILE_EVENTS = {"open", *(f"os.{name}" for name in _CALLS)}


@dataclass(frozen=True)
class Life:
    """What a process is to do.

    die_at: it kills itself with SIGKILL before this file operation (1 is the first) on what lies under `place`.
    workers: the trials of studies run in real worker processes, not in this one, and figures are drawn.
    powerless: it has none of a superuser's rights over the files of others and modes of its own.
    blind: a training does not look beforehand whether the disk has room.
    """

    arguments: list[str]
    place: Path
    die_at: int = 0
    workers: bool = False
    powerless: bool = False
    blind: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def _live(life: Life, log: str) -> None:
    os.setpgrp()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update({"OMP_NUM_THREADS": "1", **life.environment})
    import torch

    torch.set_num_threads(1)
    from loopscale.cli import main
    from loopscale.report import figure
    from loopscale.study import InThisProcess, LocalProcesses

    if not life.workers:
        LocalProcesses.submit = InThisProcess.submit  # type: ignore[method-assign]
        figure.Figure.spec = lambda self, **asked: {"figure": repr(self)}  # type: ignore[method-assign]
        figure.render = lambda spec: dict.fromkeys(("svg", "png", "pdf"), json.dumps(spec).encode())
    if life.blind:
        from loopscale.train import checkpoint

        checkpoint.check_room = lambda *arguments: None  # type: ignore[assignment]
    os.chdir(life.place)
    if life.powerless:
        _drop_capabilities()
    if life.die_at:
        _die_before(life.die_at, str(life.place))
    code = main(life.arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _drop_capabilities() -> None:
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def _die_before(number: int, place: str) -> None:
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _FILE_EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if not os.path.abspath(os.fspath(arguments[0])).startswith(place):
            return
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Running:
    """A life that has begun; `ranks` of them are one training."""

    def __init__(self, life: Life, log: Path, ranks: int = 1) -> None:
        self.life, self.log = life, log
        log.write_text("")
        log.chmod(0o666)
        self.processes = []
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        for rank in range(ranks):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} if ranks > 1 else {}
            mine = Life(**{**life.__dict__, "environment": {**life.environment, **environment}})
            if rank and life.die_at:
                mine = Life(**{**mine.__dict__, "die_at": 0})
            process = SERVER.Process(target=_live, args=(mine, str(log)), daemon=False)
            process.start()
            self.processes.append(process)

    @property
    def said(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        """Whether all of them still run: as a launcher does, one that died ends the others."""
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """End it, with the processes that it started."""
        for process in self.processes:
            try:
                os.killpg(process.pid or 0, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                process.kill()
            process.join()

    def wait(self) -> int:
        """Its exit code; -9 when it was killed, 999 when it hung and had to be."""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            codes = [process.exitcode for process in self.processes]
            if all(code is not None for code in codes):
                return max((code or 0 for code in codes), key=abs)
            if any(code is not None and code < 0 for code in codes):
                self.kill()
                return -signal.SIGKILL
            time.sleep(0.01)
        self.kill()
        return 999


def lived(life: Life, log: Path, ranks: int = 1) -> tuple[int, str]:
    """Live to the end: exit code and what was said."""
    running = Running(life, log, ranks)
    return running.wait(), running.said


def after_some_changes(running: Running, draw: Random, most: int) -> None:
    """Wait until the folder was seen to change a few times, then for a moment that nobody chose."""
    wanted, seen, state = draw.randint(0, most), 0, picture(running.life.place)
    until = time.monotonic() + LIMIT
    while seen < wanted and running.alive() and time.monotonic() < until:
        now = picture(running.life.place)
        seen, state = seen + (now != state), now
        time.sleep(0.004)
    time.sleep(draw.random() * 0.02)


def picture(place: Path) -> list[tuple[str, int]]:
    """Names and sizes of all files under a place."""
    found = []
    for folder, _, names in os.walk(place):
        for name in names:
            path = os.path.join(folder, name)
            try:
                found.append((os.path.relpath(path, place), os.lstat(path).st_size))
            except FileNotFoundError:
                continue
    return sorted(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
