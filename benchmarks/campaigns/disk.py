"""Fill the disk under every writer: one sentence, the last good state whole, and the same command goes on with room.

The disk is a small file system in memory, so this needs root on Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from kills import WORKS, Bounds, progress
from life import Life, lived, picture
from tally import Tally
from world import differing, facts

CLAIM = (
    "on a full disk every writer ends with one sentence and exit 2, and goes on as if undisturbed when there is room"
)
PAGE = 4096
SIZE = 16 * 2**20


def run(world: Path, tally: Tally, names: list[str] | None = None) -> None:
    """Leave each kind of work too little room, again and again."""
    chosen = {name: work for name, work in WORKS.items() if not work.workers and (names is None or name in names)}
    with small_disk(world / "disk") as disk:
        for number, (name, work) in enumerate(reversed(chosen.items())):
            bounds = Bounds.of(tally, 1 / (len(chosen) - number))
            log, draw = world / "log", Random(name)
            place = disk / "whole"
            place.mkdir()
            before = free(disk)
            code, said = lived(Life(work.arguments(world), place), log, work.ranks)
            if code != 0:
                tally.fault(f"{name}: with room it ends with {code}: {said[-400:]}")
                continue
            truth, used = facts(place), before - free(disk)
            shutil.rmtree(place)
            while not bounds.over(tally, name):
                place.mkdir()
                before_kept = []
                for _ in range(2):  # too little room twice in a row, then enough
                    fill(disk, draw.randrange(0, used // PAGE + 1) * PAGE)
                    code, said = lived(Life(work.arguments(world), place, blind=True), log, work.ranks)
                    (disk / "ballast").unlink()
                    tally.tried[name] += 1
                    if code == 0:
                        break
                    last = (said.strip().splitlines() or [""])[-1]
                    if code != 2 or "Traceback" in said or "mistake of loopscale" in said:
                        tally.fault(f"{name}: exit {code}: {said[-500:]}")
                    elif "disk is full" not in said and "o space left" not in said:
                        tally.fault(f"{name}: says {last}")
                    hidden = [
                        file for file, _ in picture(place) if Path(file).name.startswith(".") and ".lock" not in file
                    ]
                    if hidden:
                        tally.fault(f"{name}: leaves {hidden}")
                    kept = progress(place / "out")
                    if kept[: len(before_kept)] != before_kept:
                        tally.fault(f"{name}: {before_kept[-3:]} became {kept[-3:]}")
                    before_kept = kept
                code, said = lived(Life(work.arguments(world), place), log, work.ranks)
                if code != 0:
                    tally.fault(f"{name}: with room again it ends with {code}: {said[-400:]}")
                elif wrong := differing(facts(place), truth):
                    tally.fault(f"{name}: with room again another result: {wrong}")
                shutil.rmtree(place)
            print(f"{name}: {tally.tried[name]} full disks", flush=True)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount one for the block."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def free(disk: Path) -> int:
    """Bytes that are free."""
    return shutil.disk_usage(disk).free


def fill(disk: Path, left: int) -> None:
    """Leave `left` bytes free."""
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(PAGE, free(disk) - left))
