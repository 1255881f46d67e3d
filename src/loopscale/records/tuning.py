"""Type the records of a tuning folder: tune.json and plan.json; its trials are those of a study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field, FiniteFloat, PositiveInt, field_validator

from loopscale.records.record import USER_CODE, Interval, Record
from loopscale.records.study import Pays, Tuned, above_zero

FIX = "run `loopscale tune` again on this folder, its trials are kept"


@dataclass(frozen=True)
class Size:
    """Loops N, layers L, width d, and how long and on how much: what differs between proxy and target.

    >>> str(Size(32, 8, 1024, 1000, 64))
    'N = 32, L = 8, d = 1024, 1000 steps of 64 sequences'
    """

    loops: int
    layers: int
    width: int
    steps: int
    batch: int

    def __str__(self) -> str:
        return ", ".join(self._parts())

    def _parts(self) -> tuple[str, ...]:
        steps = f"{self.steps} steps of {self.batch} sequences"
        return f"N = {self.loops}", f"L = {self.layers}", f"d = {self.width}", steps

    def apart(self, other: Size) -> str:
        """Say what differs from the other size, with the values of this one.

        >>> Size(1, 2, 64, 300, 16).apart(Size(16, 2, 64, 300, 16))
        'N = 1'
        """
        differing = [here for here, there in zip(self._parts(), other._parts(), strict=True) if here != there]
        return ", ".join(differing) or "the same size"

    @classmethod
    def of(cls, config: Any) -> Size:
        """Return the size that a `TrainConfig` states."""
        model = config.model
        return cls(model.loops, model.layers, model.width, config.train.steps, config.data.batch_size)

    def replace(self, **axes: int) -> Size:
        """Return the same with some axes changed."""
        return replace(self, **axes)


class TuneRecord(Record):
    """tune.json: what the tuning asks."""

    SCHEMA: ClassVar[int] = 3
    OLDER: ClassVar[tuple[int | None, ...]] = (1, 2)
    FIX: ClassVar[str] = "restore it, or give the tuning a new folder with --out"

    base: dict[str, Any]
    proxy: Size
    target: Size
    tuned: tuple[str, ...]
    trials: PositiveInt
    seeds: PositiveInt
    user_code: dict[str, Any] | None = Field(default=None, validation_alias=USER_CODE)


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

    values: Tuned
    intervals: dict[str, Interval | None]
    loss: FiniteFloat
    seed_noise: FiniteFloat | None
    edges: tuple[str, ...] = ()
    interval_note: str = ""
    open: dict[str, str] = Field(default_factory=dict)

    @field_validator("intervals")
    @classmethod
    def _above_zero(cls, intervals: dict[str, Interval | None]) -> dict[str, Interval | None]:
        above_zero({name: min(interval) for name, interval in intervals.items() if interval is not None})
        return intervals


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
    """What `loopscale verify` added to the plan.

    `bound`: what the plan loses at most, in nats, over all that was measured or extrapolated (95 % each).
    """

    verdict: str
    bound: float | None = None
    sentence: str
    says: tuple[str, ...] = ()
    next: str = ""
    pays: Pays | None = None
    local: tuple[Sweep, ...]
    target: tuple[Trend, ...]
    exponents: tuple[Exponent, ...] = ()
    not_verified: tuple[str, ...]


class Plan(Record):
    """plan.json: the tuned values, every value at the target, what it cost, and what verification found."""

    SCHEMA: ClassVar[int] = 3
    OLDER: ClassVar[tuple[int | None, ...]] = (2,)
    FIX: ClassVar[str] = FIX

    sentence: str
    says: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    next: str = ""
    proxy: Proxy
    target: dict[str, Any] = Field(default_factory=dict)
    rows: tuple[Row, ...]
    moved: tuple[Moved, ...] = ()
    cost: dict[str, Any]
    provenance: dict[str, Any] = Field(default_factory=dict)
    pays: Pays | None = None
    verification: Verification | None = None
