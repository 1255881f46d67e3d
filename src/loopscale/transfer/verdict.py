"""From optima to a verdict: the slope of the optimum over loops, the one-shot regret, and the sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loopscale.transfer.optimum import Optimum

SLOPE_TOLERANCE = 0.15  # octaves of rate per doubling of loops: from N = 1 to 16 less than a factor 1.5
REGRET_TOLERANCE = 0.01  # nats

Verdict = Literal["transfers", "drifts", "undecided"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Slope:
    """log2 of the best rate over log2 loops, with a 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Regret:
    """What the rate tuned at the smallest N costs at the largest, in nats. `value` is None when it diverged there."""

    value: float | None
    interval: Interval | None
    noise: float


def fit_slope(optima: Mapping[int, Optimum]) -> Slope | None:
    """Least squares of log2 rate over log2 loops; None with fewer than two loops or an unbracketed optimum.

    The interval is the bootstrap's, widened where the optima scatter about their line more than their own draws do.
    """
    if len(optima) < 2 or any(optimum.edge for optimum in optima.values()):
        return None
    loops = sorted(optima)
    x = np.log2(np.array(loops, dtype=float))
    centred = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    y = np.array([optima[n].log2_lr for n in loops])
    value = float(centred @ y)
    draws = centred @ np.stack([optima[n].draws for n in loops])
    deviation = draws - draws.mean()
    residual = y - y.mean() - value * (x - x.mean())
    if len(loops) > 2:
        scatter = math.sqrt(float(residual @ residual) / (len(loops) - 2) * float(centred @ centred))
        own = float(deviation.std())
        deviation = (
            deviation * max(1.0, scatter / own) if own > 0 else deviation + scatter * np.linspace(-2, 2, len(draws))
        )
    low, high = np.quantile(value + deviation, [0.025, 0.975])
    return Slope(value, (float(low), float(high)))


def one_shot_regret(at_tuned: list[float], at_best: list[float], noise: float) -> Regret:
    """Paired over seeds: mean of (loss at the rate tuned at the smallest N - loss at the best rate).

    `noise` is the seed noise of one trial; with one seed it alone makes the interval.
    """
    if not at_tuned or not all(map(math.isfinite, at_tuned)):
        return Regret(None, None, noise)
    differences = np.array(at_tuned) - np.array(at_best[: len(at_tuned)])
    value = float(differences.mean())
    count = len(differences)
    if np.all(differences == 0):
        return Regret(0.0, (0.0, 0.0), noise)
    error = (
        float(differences.std(ddof=1)) / math.sqrt(count) * _T95[min(count, 6)]
        if count > 1
        else 2 * math.sqrt(2) * noise
    )
    return Regret(value, (value - error, value + error), noise)


_T95 = {2: 12.7, 3: 4.3, 4: 3.18, 5: 2.78, 6: 2.57}


def judge(slope: Slope | None, regret: Regret) -> Verdict:
    """transfers: the slope's interval lies within the tolerance and the one-shot regret is small.

    drifts: the interval lies outside the tolerance; or it excludes 0 and the regret's interval lies above its tolerance;
    or the tuned rate diverges. Everything else is undecided.
    """
    if slope is None:
        return "undecided"
    low, high = slope.interval
    if regret.value is None or low > SLOPE_TOLERANCE or high < -SLOPE_TOLERANCE:
        return "drifts"
    moves = low > 0 or high < 0
    if moves and regret.interval is not None and regret.interval[0] > REGRET_TOLERANCE:
        return "drifts"
    small = regret.value <= max(REGRET_TOLERANCE, regret.noise)
    return "transfers" if -SLOPE_TOLERANCE <= low and high <= SLOPE_TOLERANCE and small else "undecided"


def sentence(rule: str, verdict: Verdict, slope: Slope | None, regret: Regret, optima: Mapping[int, Optimum]) -> str:
    """The verdict on one rule, with its numbers."""
    first, last = min(optima), max(optima)
    trend = f"loss at its best rate {optima[first].loss:.3f} at N = {first}, {optima[last].loss:.3f} at N = {last}"
    if slope is None:
        return f"{rule}: undecided, the optimum is not bracketed at every number of loops; {trend}."
    moved = (
        f"it moves {slope.value:+.2f} octaves per doubling of loops "
        f"(95 % interval {slope.interval[0]:+.2f} to {slope.interval[1]:+.2f})"
    )
    cost = "diverges" if regret.value is None else f"costs {regret.value:.3f} nats"
    says = {
        "transfers": "the best learning rate stands still",
        "drifts": "the best learning rate drifts",
        "undecided": "the data do not decide whether the best learning rate moves",
    }[verdict]
    return f"{rule}: {says}: {moved}; {trend}; the rate tuned at N = {first} {cost} at N = {last}."
