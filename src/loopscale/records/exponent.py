"""Type the records of an exponent study: exponent.json and result.json."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt

from loopscale.records.record import Interval, Record
from loopscale.records.study import Estimate, Pays, Point


class ExponentStudyRecord(Record):
    """exponent.json: what the exponent study asks: loops, the start of its grid, seeds, ways to carry, the target."""

    FIX: ClassVar[str] = "restore it, or give the study a new folder with --out"

    base: dict[str, Any]
    loops: tuple[PositiveInt, ...]
    strengths: tuple[PositiveFloat, ...] | None
    lrs: tuple[PositiveFloat, ...] | None
    outer_rate: PositiveFloat | None
    seeds: PositiveInt
    fresh: PositiveInt
    carry: tuple[str, ...]
    target: PositiveInt | None
    user_code: dict[str, Any] | None = None


class ValleyPoint(Record):
    """The lowest loss over the rates at one eps; `seeds` says how many trained it."""

    eps: PositiveFloat
    loss: FiniteFloat
    interval: Interval | None = None
    seeds: PositiveInt


class Valley(Record):
    """One N: the losses over eps, ascending, and the optimum of the fitted surface (None: every seed diverged).

    `edge`: the optimum lies at the end of what was tried, named by `open_at`; then there are no intervals.
    """

    loops: PositiveInt
    points: tuple[ValleyPoint, ...]
    eps: Estimate | None = None
    lr: Estimate | None = None
    loss: Estimate | None = None
    edge: bool = False
    open_at: str = ""


class CarriedEps(Record):
    """What a way to carry the optimum of the smallest N loses at the largest, over fresh seeds; None: a seed diverged."""

    way: str
    a: FiniteFloat | None = None
    g: FiniteFloat | None = None
    eps: PositiveFloat
    lr: PositiveFloat
    loss: Estimate | None = None
    regret: Estimate | None = None

    @property
    def spoken(self) -> str:
        """The way for readers: a bare power of N by what it does."""
        return f"N^-{self.way}" if self.way.replace(".", "", 1).lstrip("-").isdigit() else self.way


class AtTarget(Record):
    """The eps and the hidden rate at the target's N, along the fitted powers; `strength` is that eps as a strength."""

    loops: PositiveInt
    eps: Estimate
    strength: PositiveFloat
    lr: Estimate


class OuterPilot(Record):
    """The rate of embedding, readout and final norm in every trial; `points`: the pilot that found it at the smallest N."""

    rate: PositiveFloat
    interval: Interval | None = None
    points: tuple[Point, ...] = ()


class ExponentResult(Record):
    """result.json of an exponent study: best eps ~ N^-a, best hidden rate ~ N^-g, what each way to carry loses."""

    FIX: ClassVar[str] = "run `loopscale exponent` again on this folder to rebuild it from its trials"

    verdict: str
    rate_verdict: str
    sentence: str
    says: tuple[str, ...] = ()
    next: str = ""
    a: Estimate | None = None
    g: Estimate | None = None
    loops: tuple[PositiveInt, ...]
    valleys: tuple[Valley, ...]
    carried: tuple[CarriedEps, ...] = ()
    differences: dict[str, Estimate] = Field(default_factory=dict)
    target: AtTarget | None = None
    outer: OuterPilot | None = None
    pays: Pays | None = None
    user_code: str = ""
    provenance: dict[str, Any] = Field(default_factory=dict)
