"""`--executor`: where the trials run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.errors import UserError, nearest

if TYPE_CHECKING:
    from loopscale.study import Executor

NAMES = ("local", "stacks", "auto", "ray", "slurm")
HELP = (
    "local (a process a core), stacks or stacks:K (in each K trials at once, or 16), auto (the faster), ray or slurm."
)


def make_executor(
    name: str, workers: int | None, address: str | None, folder: Path, sample: Callable[[], dict[str, Any]]
) -> Executor:
    """The executor of that name; `sample()` is the config of a typical job. Raises `UserError` for an unknown one."""
    from loopscale.study import Fastest, LocalProcesses, RayTasks, SlurmArrays, Stacks

    kind, size = _size(name)
    if kind not in NAMES:
        raise UserError(f"unknown executor {kind!r}: {nearest(kind, NAMES)}")
    if address is not None and kind != "ray":
        raise UserError("--address is of a Ray cluster: add --executor ray")
    if kind == "ray":
        return RayTasks(address, workers)
    if kind == "slurm":
        beside = folder.with_name(f"{folder.name}-jobs")  # a study's folder holds the study alone
        return SlurmArrays(beside, workers or 16)
    if kind == "stacks":
        return Stacks(workers, size, sample()["train"]["device"], say)
    if kind == "auto":
        return Fastest(sample(), workers, say)
    return LocalProcesses(workers)


def say(sentence: str) -> None:
    """Tell what an executor decided, on stderr."""
    click.echo(f"loopscale: {sentence}", err=True)


def _size(name: str) -> tuple[str, int | None]:
    """ "stacks:8" as ("stacks", 8), anything else as it is."""
    kind, colon, size = name.partition(":")
    if kind != "stacks" or not colon:
        return name, None
    if not size.isdecimal():
        raise UserError(f"how many trials a stack holds is a whole number, got {size!r}: such as stacks:8")
    return kind, int(size)
