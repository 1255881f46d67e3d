"""Estimate a number that was measured once per seed: its mean, and a 95 % interval by Student's t over the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from loopscale.records import Estimate


def over_seeds(values: Sequence[float], center: float | None = None) -> Estimate:
    """Estimate the mean of `values`, one per seed; `center` replaces the mean where more data than these give it.

    Everything that the trials of one seed share is in its value, so only the values are taken to be independent.

    >>> [round(end, 2) for end in over_seeds([1.0, 2.0, 3.0]).interval]
    [-0.48, 4.48]
    """
    array = np.asarray(values, dtype=float)
    value = float(array.mean()) if center is None else center
    if len(array) < 2:
        return Estimate(value=value, interval=None, by_seed=tuple(array.tolist()))
    error = student95(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(value=value, interval=(value - error, value + error), by_seed=tuple(array.tolist()))


def paired(first: Estimate, second: Estimate) -> Estimate:
    """Estimate the difference of two values measured with the same seeds."""
    pairs = zip(first.by_seed, second.by_seed, strict=False)
    return over_seeds([a - b for a, b in pairs], first.value - second.value)


def along_loops(places: Mapping[int, tuple[float, Sequence[float]]], at: int | None = None) -> Estimate:
    """Fit a place over log2 N by least squares, for each seed: the slope, or the place at N = `at` on the line.

    `places` maps N to the place, and to how far each seed's own lies from it.
    """
    loops = sorted(places)
    x = np.log2(np.array(loops, dtype=float))
    slope = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    weights = slope if at is None else 1 / len(x) + (math.log2(at) - x.mean()) * slope
    value = float(weights @ np.array([places[n][0] for n in loops]))
    shared = min(len(places[n][1]) for n in loops)
    shifts = np.array([places[n][1][:shared] for n in loops])
    return over_seeds((value + weights @ (shifts - shifts.mean(axis=1, keepdims=True))).tolist(), value)


@cache
def student95(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t.

    >>> round(student95(10), 3)
    2.228
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
