"""Processes that train, forked from a server that has imported torch already: a start costs milliseconds, not seconds.

They are real processes with process groups of their own; nothing is shared but the imports.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "torch._dynamo",
        "torch.distributed.tensor",
        "loopscale.train",
    ]
)
LIMIT = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def child(
    environment: dict[str, str], pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT - 10)
    try:
        pipe.send(("result", function(*arguments)))
    except BaseException as problem:
        pipe.send(("error", f"{type(problem).__name__}: {problem}"))
        if not isinstance(problem, ValueError):
            traceback.print_exc(file=sys.stderr)
    pipe.close()


def begin(count: int, function: Callable[..., Any], *arguments: Any) -> list[tuple[BaseProcess, Connection]]:
    """Start `function(*arguments)` on `count` ranks."""
    port, started = free_port(), []
    for rank in range(count):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment |= {"LOOPSCALE_CACHE": os.environ["LOOPSCALE_CACHE"]}
        here, there = SERVER.Pipe()
        process = SERVER.Process(target=child, args=(environment, there, function, arguments), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    return started


def finish(started: list[tuple[BaseProcess, Connection]]) -> list[tuple[str, Any]]:
    """("result" | "error" | "lost", value) of each rank; a rank that hangs fails the test."""
    answers = []
    try:
        for process, pipe in started:
            if not pipe.poll(LIMIT):
                raise AssertionError("a rank hangs")
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(("lost", None))
            process.join(LIMIT)
    finally:
        for process, _ in started:
            process.kill()
    return answers


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function` gives on each rank; an error of one is an error of the test."""
    answers = finish(begin(count, function, *arguments))
    assert [kind for kind, _ in answers] == ["result"] * count, answers
    return [value for _, value in answers]
