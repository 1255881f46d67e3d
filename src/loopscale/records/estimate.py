"""A measured number and how well it is known."""

from __future__ import annotations

import math

from pydantic import FiniteFloat

from loopscale.records.record import Interval, Record


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
