"""`--executor`: where the trials run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loopscale.errors import UserError, nearest

if TYPE_CHECKING:
    from loopscale.transfer import Executor

NAMES = ("auto", "local", "ray", "slurm")


def make_executor(name: str, workers: int | None, address: str | None, folder: Path) -> Executor:
    """The executor of that name; raises `UserError` for an unknown one."""
    from loopscale.transfer import LocalProcesses, RayTasks, SlurmArrays

    if name not in NAMES:
        raise UserError(f"unknown executor {name!r}: {nearest(name, NAMES)}")
    if address is not None and name != "ray":
        raise UserError("--address is of a Ray cluster: add --executor ray")
    if name == "ray":
        return RayTasks(address, workers)
    if name == "slurm":
        beside = folder.with_name(f"{folder.name}-jobs")  # a study's folder holds the study alone
        return SlurmArrays(beside, workers or 16)
    return LocalProcesses(workers)
