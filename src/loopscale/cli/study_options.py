"""What every study command is asked besides its own axes: of what code, on what data, where its trials run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from loopscale.cli.options import JSON, MODEL, OPEN, PATH, SETS, finish, name_of
from loopscale.cli.sentence import tell, warn
from loopscale.errors import UserError, nearest
from loopscale.factory import peek

if TYPE_CHECKING:
    from loopscale.study import Design, Executor, UserCode
    from loopscale.train import TrainConfig

P = TypeVar("P", bound="Design")
DATA = click.option("--data", help="stdlib, synthetic:TASK, a file or folder, or hf:NAME.")
OBJECTIVE = click.option(
    "--objective", metavar="PLACE", help="Your own Python objective: file.py:objective, values -> loss."
)
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
    """Where trials run, as the options above say."""

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
        """Make the executor for jobs like `sample()`; raises `UserError` for an unknown one, or a foreign option."""
        from loopscale.study import Batched, Fastest, LocalProcesses, RayTasks, SlurmArrays

        kind, size = _size(self.executor)
        for option, (owners, instead) in _OWNERS.items():
            if getattr(self, option) is not None and kind not in owners:
                raise UserError(f"--{option} is not for --executor {kind}: {instead}")
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


_OWNERS = {
    "address": (("ray",), "it is of a Ray cluster, add --executor ray"),
    "slurm": (("slurm",), "add --executor slurm"),
    "gpus": (("local", "batched", "auto", "ray"), "write --slurm gres=gpu:1"),
}


@dataclass(frozen=True)
class Asked:
    """What every study command is asked besides its own axes, and how it answers."""

    where: Where
    as_json: bool
    out: Path | None = None
    model: str | None = None
    objective: str | None = None
    data: str | None = None
    sets: tuple[str, ...] = ()
    open_page: bool = False

    def code(self) -> UserCode | None:
        """Return the user's code that was named, or None; raises `UserError` when both kinds were."""
        if self.model is not None and self.objective is not None:
            raise UserError("give --model or --objective, not both: an objective trains its model itself")
        if self.model is None and self.objective is None:
            return None
        if self.model is not None:
            peek(self.model)  # before the imports, which take seconds
        from loopscale.study import UserCode

        return UserCode.at(self.model) if self.model is not None else UserCode.at(str(self.objective), "objective")

    def overrides(self, *more: str) -> tuple[str, ...]:
        """Return --set, on top of the source of --data and the device of trials that get a GPU."""
        data = () if self.data is None else (f"data.path={json.dumps(self.data)}",)
        return self.where.sets((*data, *self.sets, *more))

    @property
    def anew(self) -> bool:
        """Whether the config of the trials was named, so that no folder goes on as it is."""
        return bool(self.sets) or self.data is not None

    def folder(self, command: str, name: str | None) -> Path:
        """Return --out, or runs/COMMAND-NAME; without a name that of the user's code."""
        return self.out or Path("runs") / f"{command}-{name or name_of(self.model or self.objective or '')}"

    def placed(self, plan: P, base: TrainConfig, folder: Path) -> tuple[P, Executor]:
        """Choose the precision of all trials of a study, as `base` asks for it, and where they run."""
        from loopscale.study import with_precision

        plan = with_precision(plan, base.train.precision, folder / plan.FILE, tell)
        return plan, self.where.make(folder, plan.typical_job)

    def answer(self, result: Any, lines: list[str], page: Path) -> None:
        """Print what a study found, as JSON or in words, and open its page if that was asked for."""
        finish(result, "\n".join([*lines, f"page: {page}"]), self.as_json, page if self.open_page else None)


SHARED = {"model": MODEL, "objective": OBJECTIVE, "data": DATA, "set": SETS, "open": OPEN}


def asked(*names: str, out: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of these names, and all that studies share, as `asked`; `out` is the help of --out."""
    place = [click.option("--out", type=PATH, help=out)] if out else []
    options = [*(SHARED[name] for name in names), *OPTIONS, *place, JSON]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathered(**given: Any) -> Any:
            where = Where(**{field.name: given.pop(field.name) for field in fields(Where)})
            mine = {field.name: given.pop(field.name) for field in fields(Asked) if field.name in given}
            return command(Asked(where, **mine), **given)

        for option in reversed(options):
            gathered = option(gathered)
        return gathered

    return decorate


def slurm_options(text: str | None) -> dict[str, str]:
    """Read "partition=gpu,time=120" as options of sbatch; raises `UserError` for anything else.

    >>> slurm_options("partition=gpu,time=120,gres=gpu:1")
    {'partition': 'gpu', 'time': '120', 'gres': 'gpu:1'}
    """
    options = {}
    for part in filter(None, (text or "").split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        minutes = value.isascii() and value.isdigit()
        if not (name and equals and value) or (name == "time" and not minutes):
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


AGAIN = "delete their lines in trials.jsonl (those with an 'error') to repeat them"


def tell_again(provenance: dict[str, Any], again: str = AGAIN) -> None:
    """Say at the end what was warned of before the trials, and which raised; `again` says how to repeat those."""
    for text in provenance.get("data", {}).get("warnings", []):
        warn(text)
    if errors := provenance.get("errors", []):
        tell(
            f"{len(errors)} of {provenance['trials']} trials raised and count as diverged, the first {errors[0]}: {again}"
        )
