"""A number measured once per seed: its mean and a 95 % interval by Student's t over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval (None: one seed shows no noise), and the value that each seed gives alone."""

    value: float
    interval: Interval | None
    by_seed: tuple[float, ...]

    @property
    def error(self) -> float:
        """Half the width of the interval; infinite without one."""
        return math.inf if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def moves(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def over_seeds(values: Sequence[float], center: float | None = None) -> Estimate:
    """Estimate the mean of `values`, one per seed; `center` replaces the mean where more data than these give it.

    Everything that the trials of one seed share is in its value, so only the values are taken to be independent.

    >>> [round(end, 2) for end in over_seeds([1.0, 2.0, 3.0]).interval]
    [-0.48, 4.48]
    """
    array = np.asarray(values, dtype=float)
    value = float(array.mean()) if center is None else center
    if len(array) < 2:
        return Estimate(value, None, tuple(array.tolist()))
    error = student95(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(value, (value - error, value + error), tuple(array.tolist()))


def paired(first: Estimate, second: Estimate) -> Estimate:
    """Estimate the difference of two values measured with the same seeds."""
    pairs = zip(first.by_seed, second.by_seed, strict=False)
    return over_seeds([a - b for a, b in pairs], first.value - second.value)


@cache
def student95(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t.

    >>> round(student95(10), 3)
    2.228
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
