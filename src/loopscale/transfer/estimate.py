"""Estimate what was measured once per seed: a mean, a slope over loops, the optimum of one arm, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from loopscale.records import Estimate, Interval


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


Array = NDArray[np.float64]
Losses = Mapping[tuple[float, int], float]  # (rate, seed) -> validation loss, inf when diverged
WINDOW = 1.01  # octaves on either side of the best rate that enter the parabola


@dataclass(frozen=True)
class Optimum:
    """Where the mean loss over log2 rate is smallest.

    `shifts`: by seed, how many octaves the seed's own optimum lies above `log2_lr` (to first order). `losses`: by seed,
    the loss at `log2_lr`. `parabolas` has a row per seed, (curvature, slope, loss) about `log2_lr`, fitted over `reach`.
    `edge`: no minimum lies inside what was tried, so the numbers are those of the best rate and no interval is claimed.
    """

    log2_lr: float
    losses: tuple[float, ...]
    shifts: tuple[float, ...]
    parabolas: Array
    reach: Interval
    edge: bool

    @property
    def lr(self) -> float:
        """The fitted rate."""
        return float(2.0**self.log2_lr)

    @property
    def loss(self) -> float:
        """The mean over seeds of the loss at the fitted rate."""
        return self.at_optimum.value

    @property
    def n_seeds(self) -> int:
        """How many seeds were trained at every rate that was fitted."""
        return len(self.losses)

    @property
    def at_optimum(self) -> Estimate:
        """The loss at the fitted rate."""
        return over_seeds(self.losses)

    @property
    def curve(self) -> float:
        """The curvature of the mean parabola, in nats per octave^2."""
        return float(self.parabolas[:, 0].mean())

    def interval(self) -> Interval | None:
        """Return 95 % interval of the rate; None at an edge and with one seed."""
        return None if self.edge else over_seeds(self.shifts, self.log2_lr).powered().interval

    def loss_interval(self) -> Interval | None:
        """Return 95 % interval of the loss at the optimum, of the mean over seeds; None at an edge and with one seed."""
        return None if self.edge else self.at_optimum.interval


def fit_optimum(losses: Losses) -> Optimum | None:
    """Fit `loss = a + b x + c x^2`, x = log2 rate, for each seed, to the rates within an octave of the best one.

    The optimum is the minimum of the mean parabola. Noise moves whole curves of a seed, not only single trials, so the
    interval rests on the seeds' own parabolas: a seed with slope b_s at the common optimum has its own b_s / 2c away.

    Returns None when every trial diverged.
    """
    rows = complete(losses)
    best = best_rate(losses)
    if not any(map(math.isfinite, losses.values())):
        return None
    at = math.log2(best)
    near = {math.log2(rate) - at: row for rate, row in rows.items() if abs(math.log2(rate) - at) <= WINDOW}
    x = np.array(sorted(near))
    if len(x) < 3 or not x[0] < 0 < x[-1]:
        return _at_edge(best, losses)
    parabolas = np.polyfit(x, np.array([near[place] for place in x]), 2).T
    curve, slope, _ = parabolas.mean(axis=0)
    if curve <= 0:
        return _at_edge(best, losses)
    bottom = float(np.clip(-slope / (2 * curve), x[0], x[-1]))
    a, b, c = parabolas[:, 0], parabolas[:, 1], parabolas[:, 2]
    about = np.stack([a, b + 2 * a * bottom, c + b * bottom + a * bottom**2], axis=1)
    mean = about[:, 1].mean()  # 0 unless the minimum was put at the end of the window
    shifts = -(about[:, 1] - mean) / (2 * curve)
    return Optimum(
        at + bottom, tuple(about[:, 2].tolist()), tuple(shifts.tolist()), about, (at + x[0], at + x[-1]), edge=False
    )


def complete(losses: Losses) -> dict[float, list[float]]:
    """Return rate -> losses by seed for the rates that were trained with the most seeds, none of which diverged.

    Both are ordered, whatever the order in which trials ended.
    """
    by_rate: dict[float, list[float]] = {}
    for (rate, _), loss in sorted(losses.items()):
        by_rate.setdefault(rate, []).append(loss)
    finite = {rate: row for rate, row in by_rate.items() if all(map(math.isfinite, row))}
    most = max(map(len, finite.values()), default=0)
    return {rate: row for rate, row in finite.items() if len(row) == most}


def best_rate(losses: Losses) -> float:
    """Return the rate with the smallest mean among `complete` ones; if there are none, the smallest rate tried.

    >>> best_rate({(0.1, 0): 2.0, (0.2, 0): 1.9, (0.4, 0): math.inf})
    0.2
    """
    rows = complete(losses)
    return min(rows, key=lambda rate: sum(rows[rate])) if rows else min(rate for rate, _ in losses)


def _at_edge(best: float, losses: Losses) -> Optimum:
    row = complete(losses).get(best) or [min(losses.values())]
    at, nothing = math.log2(best), np.zeros((len(row), 3))
    return Optimum(at, tuple(row), (0.0,) * len(row), nothing, (at, at), edge=True)
