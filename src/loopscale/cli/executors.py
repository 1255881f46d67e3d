"""`--executor` and its company: where the trials of a study run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.sentence import tell, warn
from loopscale.errors import UserError, nearest

if TYPE_CHECKING:
    from loopscale.study import Executor

NAMES = ("local", "batched", "auto", "ray", "slurm")
OPTIONS = (
    click.option(
        "--executor",
        default="local",
        show_default=True,
        help="local (one process per core), batched[:K] (K trials at once per process, default 16), auto (the faster of "
        "both), ray or slurm.",
    ),
    click.option("--workers", type=int, help="How many places run at once; default: one per core, or per GPU."),
    click.option("--gpus", type=float, help="GPUs per trial: 1, 2, ... or a share such as 0.25 (local, batched, ray)."),
    click.option("--address", help="Of a Ray cluster, such as auto."),
    click.option("--slurm", metavar="A=B,...", help="Options of sbatch: partition=gpu,time=120,gres=gpu:1 (minutes)."),
)


@dataclass(frozen=True)
class Where:
    """What the options of `placed` say."""

    executor: str
    workers: int | None
    gpus: float | None
    address: str | None
    slurm: str | None

    def sets(self, sets: tuple[str, ...]) -> tuple[str, ...]:
        """Add the device of trials that get a GPU to the overrides, unless they name one."""
        on_gpu = self.gpus is not None or "gres" in slurm_options(self.slurm)
        named = any(part.replace(" ", "").startswith("train.device=") for part in sets)
        return ('train.device="auto"', *sets) if on_gpu and not named else sets

    def make(self, folder: Path, sample: Callable[[], dict[str, Any]]) -> Executor:
        """Make the executor; `sample()` is the config of a typical job.

        Raises `UserError` for an unknown executor, or an option that is not one of its own.
        """
        from loopscale.study import Batched, Fastest, LocalProcesses, RayTasks, SlurmArrays

        kind, size = _size(self.executor)
        for option, owners in (
            ("address", ("ray",)),
            ("slurm", ("slurm",)),
            ("gpus", ("local", "batched", "auto", "ray")),
        ):
            if getattr(self, option) is not None and kind not in owners:
                raise UserError(f"--{option} is not for --executor {kind}: {_INSTEAD[option]}")
        if kind == "slurm":
            beside = folder.with_name(f"{folder.name}-jobs")  # a study's folder holds the study alone
            return SlurmArrays(beside, 16 if self.workers is None else self.workers, **slurm_options(self.slurm))
        if kind == "ray":
            return RayTasks(self.address, self.workers, self.gpus or 0.0)
        config = sample()
        gpus = _gpus(config["train"]["device"], self.gpus)
        if kind == "batched":
            return Batched(self.workers, size, tell, gpus)
        return Fastest.of(config, self.workers, tell, gpus) if kind == "auto" else LocalProcesses(self.workers, gpus)


_INSTEAD = {
    "address": "it is of a Ray cluster, add --executor ray",
    "slurm": "add --executor slurm",
    "gpus": "write --slurm gres=gpu:1",
}


def placed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options above, as its argument `where`."""

    @functools.wraps(command)
    def gathered(*arguments: Any, **named: Any) -> Any:
        where = Where(**{field.name: named.pop(field.name) for field in fields(Where)})
        return command(*arguments, where=where, **named)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return gathered


def slurm_options(text: str | None) -> dict[str, str]:
    """Read "partition=gpu,time=120" as options of sbatch; raises `UserError` for anything else.

    >>> slurm_options("partition=gpu,time=120,gres=gpu:1")
    {'partition': 'gpu', 'time': '120', 'gres': 'gpu:1'}
    """
    options = {}
    for part in filter(None, (text or "").split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if (
            not (name and equals and value)
            or (name == "time" and not value.isascii())
            or (name == "time" and not value.isdigit())
        ):
            raise UserError(f"--slurm {part.strip()!r} is not name=value, such as partition=gpu,time=120 (minutes)")
        options[name] = value
    return options


def _gpus(device: str, asked: float | None) -> float:
    """Decide the GPUs of a trial on this machine: one where the config trains on a GPU, none, with a warning, where not."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "the trials train on a GPU and this machine has none: --set train.device=cpu, or --executor ray or slurm"
        )
    if asked is not None or not torch.cuda.is_available():
        return asked or 0.0
    if device != "cpu":
        return 1.0
    warn("this machine has a GPU and the trials use none: add --gpus 1, or a share such as --gpus 0.25")
    return 0.0


def _size(name: str) -> tuple[str, int | None]:
    """Read "batched:8" as ("batched", 8); raises `UserError` for an unknown executor."""
    kind, colon, size = name.partition(":")
    if kind == "stacks":
        raise UserError(f"the executor {name} is now called {name.replace('stacks', 'batched')}")
    if kind not in NAMES or (colon and kind != "batched"):
        raise UserError(f"unknown executor {name!r}: {nearest(kind, NAMES)}")
    if colon and not (size.isdecimal() and len(size) < 7):
        raise UserError(f"how many trials train at once is a whole number, got {size!r}: such as batched:8")
    return kind, int(size) if colon else None
