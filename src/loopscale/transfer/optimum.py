"""The fitted optimum of one arm: a parabola in log2 rate for every seed, and what the seeds say about its minimum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loopscale.records import Estimate, Interval
from loopscale.transfer.estimate import over_seeds

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
