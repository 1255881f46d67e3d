"""Type the records of a study folder: study.json, its trials, result.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from loopscale.errors import UserError
from loopscale.files import check_folder
from loopscale.records.record import USER_CODE, Interval, Record, read_record


class Estimate(Record):
    """A number with its 95 % interval (None: one seed shows no noise), and the value that each seed gives."""

    value: FiniteFloat
    interval: Interval | None = None
    by_seed: tuple[FiniteFloat, ...] = ()

    @property
    def ends(self) -> Interval:
        """The interval; without one, from -inf to inf."""
        return self.interval or (-math.inf, math.inf)

    @property
    def error(self) -> float:
        """Half the width of the interval; infinite without one."""
        return (self.ends[1] - self.ends[0]) / 2

    @property
    def moves(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.ends[0] <= 0 <= self.ends[1]

    def powered(self, unit: float = 1.0) -> Estimate:
        """Return `unit` times 2 to the power of this number: octaves become values."""
        low, high = (unit * 2.0**end for end in self.ends)
        return Estimate(
            value=unit * 2.0**self.value,
            interval=None if self.interval is None else (low, high),
            by_seed=tuple(unit * 2.0**value for value in self.by_seed),
        )

    def within(self, digits: str) -> str:
        """Say the interval in brackets; nothing without one."""
        return "" if self.interval is None else f" (95 % interval {self.ends[0]:{digits}} to {self.ends[1]:{digits}})"


class StudyRecord(Record):
    """study.json: what the study asks. `user_code` is the model or objective of the user: kind, place and fingerprint."""

    SCHEMA: ClassVar[int] = 3
    OLDER: ClassVar[tuple[int | None, ...]] = (1, 2)
    FIX: ClassVar[str] = "restore it, or give the study a new folder with --out"

    base: dict[str, Any]
    rules: tuple[str, ...]
    loops: tuple[PositiveInt, ...]
    lrs: tuple[PositiveFloat, ...] | None
    seeds: PositiveInt
    strengths: tuple[FiniteFloat, ...]
    center_lr: PositiveFloat
    preset: str
    user_code: dict[str, Any] | None = Field(default=None, validation_alias=USER_CODE)
    outer_pilot: bool = False
    beside_one: bool = False
    spacing: PositiveInt = 1
    early_end: bool = False


def above_zero(values: dict[str, float]) -> dict[str, float]:
    """Refuse a tuned value without a place on its axis, which is logarithmic but for the warm-up."""
    for name, value in values.items():
        if name != "warmup" and value <= 0:
            raise ValueError(f"{name} = {value:g} is not above 0")
    return values


Tuned = Annotated[dict[str, FiniteFloat], AfterValidator(above_zero)]


class Cell(Record):
    """Where in a study a trial stands; `lr` is the rate that is `swept`, `steps` are said where they are not the study's.

    In a tuning: `values` by name, and whether the sampler chose them (`explored`).
    """

    rule: str
    loops: PositiveInt
    lr: PositiveFloat
    strength: FiniteFloat | None = None
    seed: int
    steps: NonNegativeInt = 0
    swept: str = "lr"
    values: Tuned = Field(default_factory=dict)
    explored: bool = False

    @property
    def shown(self) -> dict[str, float]:
        """What to show of it: the tuned values, else rate and strength."""
        rates = {"lr": self.lr} if self.strength is None else {"lr": self.lr, "strength": self.strength}
        return self.values or rates


class Trial(Record):
    """One finished trial. Its loss is None when it diverged, was stopped early, or raised (`error`).

    A visit that overflowed has no RMS (None).
    """

    OLDER: ClassVar[tuple[int | None, ...]] = (None,)
    FIX: ClassVar[str] = "delete it and run the same command again, that repeats the trial"

    key: str = ""
    cell: Cell
    config: dict[str, Any] = Field(default_factory=dict)
    loss: FiniteFloat | None
    diverged: bool
    diverged_at: int | None = None
    stopped: bool = False
    error: str | None = None
    steps: NonNegativeInt = 0
    seconds: FiniteFloat = 0.0
    curve: tuple[tuple[int, FiniteFloat | None], ...] = ()
    stream_rms: dict[str, tuple[float | None, ...] | None] = Field(default_factory=dict)

    @property
    def height(self) -> float:
        """The loss; infinite where there is none."""
        return math.inf if self.diverged or self.loss is None else self.loss


class Optimum(Record):
    """The fitted optimum at one number of loops: the learning rate, its interval, and the loss there (nats)."""

    lr: PositiveFloat
    lr_interval: Interval | None = None
    loss: FiniteFloat
    loss_interval: Interval | None = None
    n_seeds: int = 1
    edge: bool = False

    @field_validator("lr_interval", "loss_interval")
    @classmethod
    def _with_a_width(cls, ends: Interval | None) -> Interval | None:
        """Drop an interval without a width: an optimum at the edge has none, and earlier versions wrote one."""
        return None if ends is None or ends[0] == ends[1] else ends


class Point(Record):
    """One learning rate of the sweep: the mean loss and the loss of each seed; None says diverged."""

    lr: PositiveFloat
    loss: FiniteFloat | None
    losses: tuple[FiniteFloat | None, ...] = ()

    @property
    def lost(self) -> tuple[int, int]:
        """How many seeds diverged, and of how many; a point without seeds counts as one."""
        losses = self.losses or (self.loss,)
        return losses.count(None), len(losses)

    @property
    def ends(self) -> Interval | None:
        """The smallest and the largest loss of the seeds that finished; None: none did."""
        finished = [loss for loss in self.losses if loss is not None]
        return (min(finished), max(finished)) if finished else None


class Applied(Record):
    """One number that the rule applied, and why."""

    name: str
    value: Any
    why: str = ""
    source: str = ""


class RuleRecord(Record):
    """The verdict on one rule and the numbers it rests on; the keys of the maps are loops."""

    claims_transfer: bool = False
    verdict: str
    sentence: str
    next: str = ""
    strength: FiniteFloat | None = None
    slope: FiniteFloat | None = None
    slope_interval: Interval | None = None
    regret: FiniteFloat | None = None
    regret_interval: Interval | None = None
    optima: dict[PositiveInt, Optimum] = Field(default_factory=dict)
    points: dict[PositiveInt, tuple[Point, ...]] = Field(default_factory=dict)
    applied: dict[PositiveInt, tuple[Applied, ...]] = Field(default_factory=dict)

    @field_validator("optima", mode="before")
    @classmethod
    def _without_missing_optima(cls, optima: Any) -> Any:
        """Accept null where every trial diverged and there is no optimum."""
        if not isinstance(optima, dict):
            return optima
        return {n: o for n, o in optima.items() if o and (not isinstance(o, dict) or o.get("lr", 0) is not None)}


class Paired(Record):
    """Two rules compared over the same seeds: slope and loss at the largest N of the first, minus those of the second."""

    rules: tuple[str, str]
    loops: PositiveInt
    sentence: str
    slope: FiniteFloat | None = None
    slope_interval: Interval | None = None
    loss: FiniteFloat | None = None
    loss_interval: Interval | None = None


class Pays(Record):
    """Whether looping pays: loss (nats) of `loops` loops minus that of one, which trains as many steps or `long_steps`."""

    loops: PositiveInt
    steps: PositiveInt
    long_steps: NonNegativeInt = 0
    sentence: str
    equal_steps: FiniteFloat | None = None
    equal_steps_interval: Interval | None = None
    equal_compute: FiniteFloat | None = None
    equal_compute_interval: Interval | None = None
    at_lower_end: bool = False


class OuterRate(Record):
    """The rate of embedding, readout and final norm that every trial has, and the pilot that found it at `loops` loops."""

    rate: PositiveFloat
    loops: PositiveInt
    trials: PositiveInt
    seconds: FiniteFloat
    sentence: str


class Result(Record):
    """result.json: the verdict, the fitted numbers and where they come from."""

    SCHEMA: ClassVar[int] = 2
    OLDER: ClassVar[tuple[int | None, ...]] = (1,)
    FIX: ClassVar[str] = "run `loopscale transfer` again on this folder to rebuild it from its trials"

    preset: str = ""
    user_code: str = Field(default="", validation_alias=USER_CODE)
    sentence: str
    rules: dict[str, RuleRecord]
    paired: tuple[Paired, ...] = ()
    pays: Pays | None = None
    outer: OuterRate | None = None
    early: str = ""
    strengths: tuple[FiniteFloat, ...] = ()
    loops: tuple[PositiveInt, ...]
    by_strength: dict[str, dict[PositiveInt, dict[float, Optimum]]] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)


def read_result(study_dir: Path) -> Result:
    """Read result.json; raises `UserError` when the folder is no study, is unfinished, damaged, or of another schema."""
    path = study_dir / "result.json"
    check_folder(study_dir, "give the folder that `loopscale transfer` wrote")
    if not path.exists():
        if (study_dir / "study.json").exists():
            raise UserError(f"the study in {study_dir} has no result yet: run `loopscale transfer` again to finish it")
        raise UserError(f"{study_dir} holds no result.json: give the folder that `loopscale transfer` wrote")
    result = read_record(path, Result)
    if not result.rules or not result.loops:
        raise UserError(f"{path} is damaged (it names no rule or no loops): {Result.FIX}")
    return result
