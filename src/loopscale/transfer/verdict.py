"""From optima to a verdict: the slope of the optimum over loops, the one-shot regret, and the sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loopscale.transfer.optimum import Optimum
from loopscale.transfer.search import Losses

SLOPE_TOLERANCE = 0.15  # octaves of rate per doubling of loops: from N = 1 to 16 less than a factor 1.5
REGRET_TOLERANCE = 0.01  # nats

Verdict = Literal["transfers", "drifts", "undecided"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Slope:
    """log2 of the best rate over log2 loops, with a 95 % interval."""

    value: float
    interval: Interval

    @property
    def moves(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval[0] <= 0 <= self.interval[1]


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


def one_shot_regret(at_tuned: list[float], at_best: list[float], noise: float, freedom: int = 0) -> Regret:
    """Paired over seeds: mean of (loss at the rate tuned at the smallest N - loss at the best rate).

    `noise` is the standard deviation of one trial about its seed's parabola, with `freedom` degrees of freedom: a
    difference of two trials has sqrt(2) of it. That estimate rests on many trials and is used where it is known; else the
    spread of the differences is, or with one seed the noise as it is, and no interval where none is known.
    """
    if not at_tuned or not all(map(math.isfinite, at_tuned)):
        return Regret(None, None, noise)
    differences = np.array(at_tuned) - np.array(at_best[: len(at_tuned)])
    value, count = float(differences.mean()), len(differences)
    if np.all(differences == 0):
        return Regret(0.0, (0.0, 0.0), noise)
    if freedom >= 3:
        error = student95(freedom) * noise * math.sqrt(2 / count)
    elif count > 1:
        error = student95(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
    elif noise:
        error = 2 * math.sqrt(2) * noise
    else:
        return Regret(value, None, noise)
    return Regret(value, (value - error, value + error), noise)


def student95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: a table below 3 degrees of freedom, then the expansion about the normal.

    Source: Abramowitz and Stegun 26.7.5; within 1 % from 3 degrees of freedom on.

    >>> round(student95(10), 2)
    2.23
    """
    if freedom < 3:
        return {1: 12.71, 2: 4.30}[freedom]
    z, v = 1.959964, float(freedom)
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return sum(terms)


def judge(slope: Slope | None, regret: Regret, seeds: int = 2) -> Verdict:
    """transfers: the slope's interval lies within the tolerance and the one-shot regret is small.

    drifts: the slope is certainly not 0 and its estimate lies outside the tolerance, or the regret's interval lies above
    its own; or the tuned rate diverges. Everything else is undecided, and so is all that one seed says: its scatter about
    a parabola is not what another seed would change.
    """
    if slope is None or seeds < 2:
        return "undecided"
    low, high = slope.interval
    small = regret.value is not None and regret.value <= max(REGRET_TOLERANCE, regret.noise)
    if -SLOPE_TOLERANCE <= low and high <= SLOPE_TOLERANCE and small:
        return "transfers"
    costly = regret.interval is not None and regret.interval[0] > REGRET_TOLERANCE
    if regret.value is None or (slope.moves and (abs(slope.value) > SLOPE_TOLERANCE or costly)):
        return "drifts"
    return "undecided"


def sentence(
    rule: str, verdict: Verdict, slope: Slope | None, regret: Regret, optima: Mapping[int, Optimum], why_open: str = ""
) -> str:
    """The verdict on one rule, with its numbers; `why_open` is what `unbracketed` says."""
    first, last = min(optima), max(optima)
    trend = f"loss at its best rate {optima[first].loss:.3f} at N = {first}, {optima[last].loss:.3f} at N = {last}"
    if slope is None:
        return f"{rule}: undecided, the optimum is not bracketed{why_open}; {trend}."
    moved = f"it moves {slope.value:+.2f} octaves per doubling of loops"
    cost = "diverges" if regret.value is None else f"costs {regret.value:.3f} nats"
    if few_seeds(optima):
        tuned = f"the rate tuned at N = {first} {cost} at N = {last}"
        said = "undecided, one seed shows no noise and gives no interval (--seeds 3 does)"
        return f"{rule}: {said}: {moved}; {trend}; {tuned}."
    moved += f" (95 % interval {slope.interval[0]:+.2f} to {slope.interval[1]:+.2f})"
    how_far = f"by more than {SLOPE_TOLERANCE} octaves" if slope.moves else "the best learning rate moves"
    says = {
        "transfers": "the best learning rate stands still",
        "drifts": "the best learning rate drifts",
        "undecided": f"the data do not decide whether {how_far}",
    }[verdict]
    if verdict == "undecided" and slope.moves:
        says = f"the best learning rate moves, {says}"
    return f"{rule}: {says}: {moved}; {trend}; the rate tuned at N = {first} {cost} at N = {last}."


def few_seeds(optima: Mapping[int, Optimum]) -> bool:
    """Whether all was trained with one seed: nothing shows by how much another would move the optimum."""
    return all(optimum.n_seeds < 2 for optimum in optima.values())


def unbracketed(losses: Mapping[int, Losses], optima: Mapping[int, Optimum]) -> str:
    """At which N the best rate lies at which end of what was tried, and what to add; empty where none does."""
    places: dict[str, list[int]] = {}
    for loops, optimum in optima.items():
        if not optimum.edge:
            continue
        tried = {rate for rate, _ in losses[loops]}
        trained = {rate for (rate, _), loss in losses[loops].items() if math.isfinite(loss)}
        best = min(trained, key=lambda rate: abs(math.log2(rate) - optimum.log2_lr))
        if best == max(trained) and len(tried) > 2:
            diverged = best < max(tried)
            kind = "the largest that trained: add rates near it" if diverged else "the largest tried: add larger ones"
        elif best == min(trained) and len(tried) > 2:
            kind = "the smallest tried: add smaller ones"
        else:
            kind = "among too few to fit a parabola: add rates or seeds"
        places.setdefault(kind, []).append(loops)
    said = [f"at N = {', '.join(map(str, at))} the best rate is {kind}" for kind, at in places.items()]
    return f" ({'; '.join(said)})" if said else ""
