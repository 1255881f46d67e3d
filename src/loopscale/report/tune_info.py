"""The numbers behind a tuning's page, read from its folder and checked: the plan, the trials, what verification found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat

from loopscale.errors import UserError
from loopscale.report.records import Interval, Record, checked, read_json

FIX = "run `loopscale tune` again on this folder, its trials are kept"


class Row(Record):
    """One number at the target: tuned, or set by the rule from what was tuned."""

    name: str
    value: FiniteFloat
    interval: Interval | None = None
    why: str = ""
    source: str = ""
    rate: FiniteFloat | None = None


class Moved(Record):
    """A tuned value that a published rule moved to the target's steps or batch."""

    name: str
    factor: FiniteFloat
    why: str
    source: str


class Proxy(Record):
    """What was tuned, where, and how sure it is."""

    values: dict[str, FiniteFloat]
    intervals: dict[str, Interval | None]
    loss: FiniteFloat
    seed_noise: FiniteFloat | None
    edges: tuple[str, ...] = ()
    interval_note: str = ""
    open: dict[str, str] = Field(default_factory=dict)


class Sweep(Record):
    """A local sweep of the verification: losses by seed below, at and above the plan; None diverged."""

    axis: str
    along: str
    label: str
    losses: tuple[tuple[FiniteFloat | None, ...], ...]
    regret: FiniteFloat | None
    interval: Interval | None
    in_seed_noise: FiniteFloat | None
    verdict: str


class Trend(Record):
    """A regret carried to the target along one axis."""

    axis: str
    along: str
    rule: str
    at: int
    regret: FiniteFloat | None
    interval: Interval | None
    slope: FiniteFloat | None
    verdict: str


class Exponent(Record):
    """b = 1/2 against b = 1 at so many layers."""

    layers: int
    says: str
    difference: FiniteFloat | None = None
    interval: Interval | None = None


class Verification(Record):
    """What `loopscale verify` added to the plan."""

    verdict: str
    sentence: str
    local: tuple[Sweep, ...]
    target: tuple[Trend, ...]
    exponents: tuple[Exponent, ...] = ()
    not_verified: tuple[str, ...]


class Plan(Record):
    """plan.json."""

    headline: str
    sentence: str
    proxy: Proxy
    rows: tuple[Row, ...]
    moved: tuple[Moved, ...] = ()
    cost: dict[str, Any]
    provenance: dict[str, Any] = Field(default_factory=dict)
    verification: Verification | None = None


class TuneCell(Record):
    """Where a trial stands: the tuned values, the seed, and whether the sampler chose it."""

    values: dict[str, FiniteFloat]
    seed: int
    explored: bool = False


class TuneTrial(Record):
    """trials/<key>.json of a tuning."""

    cell: TuneCell
    loss: FiniteFloat | None
    stopped: bool = False
    error: str | None = None


class TuneInfo(Record):
    """A tuning as read."""

    name: str
    plan: Plan
    trials: tuple[TuneTrial, ...]


def tune_info(folder: Path) -> TuneInfo:
    """Read plan.json and trials/ of a tuning.

    Raises `UserError` when the folder holds none, or it is unfinished or damaged.
    """
    path = folder / "plan.json"
    if not (folder / "tune.json").exists():
        raise UserError(f"{folder} holds no tune.json: give the folder that `loopscale tune` wrote")
    if not path.exists():
        raise UserError(
            f"the tuning in {folder} has no plan yet: run `loopscale tune` again to finish it, or watch it with --serve"
        )
    trials = tuple(
        checked(TuneTrial, read_json(file, FIX), file, FIX)
        for file in sorted((folder / "trials").glob("*.json"))
        if not file.name.startswith(".")
    )
    return TuneInfo(name=folder.resolve().name, plan=checked(Plan, read_json(path, FIX), path, FIX), trials=trials)
