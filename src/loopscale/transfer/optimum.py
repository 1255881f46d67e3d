"""The fitted optimum of one arm: a parabola in log2 rate with a seed offset, and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 1000
WINDOW = 1.01  # octaves on either side of the best rate that enter the parabola


@dataclass(frozen=True)
class Optimum:
    """Where the loss over log2 rate is smallest.

    `log2_lr` and `loss` come from the parabola; `draws` are bootstrap samples of log2_lr, `loss_draws` of the loss.
    `edge`: the minimum is not bracketed, so the numbers are those of the best rate tried and no interval is claimed.
    `noise` is the residual standard deviation in nats, with `freedom` degrees of freedom (0: not known).
    """

    log2_lr: float
    loss: float
    draws: Array
    loss_draws: Array
    noise: float
    n_seeds: int
    edge: bool
    freedom: int = 0

    @property
    def lr(self) -> float:
        """The fitted rate."""
        return float(2.0**self.log2_lr)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the rate."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return float(2.0**low), float(2.0**high)

    def loss_interval(self) -> tuple[float, float]:
        """95 % interval of the loss at the optimum, of the mean over seeds."""
        low, high = np.quantile(self.loss_draws, [0.025, 0.975])
        return float(low), float(high)


@dataclass(frozen=True)
class Noise:
    """What is known beforehand of one trial's standard deviation in nats, and how many trials that is worth."""

    size: float
    weight: float


PRIOR_WEIGHT = 4.0  # trials: an arm with more of its own soon outvotes the others


def pooled_noise(optima: Iterable[Optimum | None]) -> Noise | None:
    """The noise of several arms taken together; None when no arm knows its own.

    An arm of five trials knows its noise badly. As its prior serves the root mean square over the arms of one rule, worth
    no more than `PRIOR_WEIGHT` trials: the noise may differ between arms. Source: moderated variances, Smyth (2004).
    """
    known = [(optimum.noise, optimum.freedom) for optimum in optima if optimum is not None and optimum.freedom]
    total = sum(freedom for _, freedom in known)
    if not total:
        return None
    size = math.sqrt(sum(freedom * noise**2 for noise, freedom in known) / total)
    return Noise(size, min(PRIOR_WEIGHT, total))


def fit_optimum(losses: Mapping[tuple[float, int], float], seed: int = 0, prior: Noise | None = None) -> Optimum | None:
    """Fit `loss = a_seed + b x + c x^2`, x = log2 rate, to the rates within an octave of the best one.

    `losses` maps (rate, seed) to the loss, inf when diverged. Returns None when every trial diverged. The interval is a
    parametric bootstrap: noise with the residuals' standard deviation and a Student t of their degrees of freedom, so
    few points give a wide interval rather than a false one. `prior` joins the noise of the residuals (`pooled_noise`).
    """
    finite = {key: loss for key, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return None
    best = _best_rate(losses, finite)
    window = {k: v for k, v in finite.items() if abs(math.log2(k[0]) - math.log2(best)) <= WINDOW}
    x = np.array([math.log2(rate) for rate, _ in window])
    y = np.array(list(window.values()))
    seeds = np.array([s for _, s in window])
    bracketed = min(x) < math.log2(best) < max(x)
    freedom = len(y) - len(set(seeds.tolist())) - 2
    if not bracketed or freedom < 1 or len(set(x.tolist())) < 3:
        return _at_edge(best, y[x == math.log2(best)])
    return _parabola(x, y, seeds, math.log2(best), freedom, seed, prior or Noise(0.0, 0.0))


def _best_rate(losses: Mapping[tuple[float, int], float], finite: Mapping[tuple[float, int], float]) -> float:
    """The rate with the smallest mean loss among those with the most seeds, none of which diverged."""
    by_rate: dict[float, list[float]] = {}
    for (rate, _), loss in losses.items():
        by_rate.setdefault(rate, []).append(loss)
    whole = {rate: values for rate, values in by_rate.items() if all(map(math.isfinite, values))}
    if not whole:
        return min(finite, key=lambda key: finite[key])[0]
    most = max(len(values) for values in whole.values())
    means = {rate: sum(values) / len(values) for rate, values in whole.items() if len(values) == most}
    return min(means, key=lambda rate: means[rate])


def _at_edge(best: float, values: Array) -> Optimum:
    point = np.full(DRAWS, math.log2(best))
    loss = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Optimum(math.log2(best), loss, point, np.full(DRAWS, loss), spread, len(values), edge=True)


def _parabola(
    x: Array, y: Array, seeds: NDArray[np.int64], center: float, own: int, seed: int, prior: Noise
) -> Optimum:
    kinds = sorted(set(seeds.tolist()))
    offsets = np.stack([(seeds == kind).astype(float) for kind in kinds], axis=1)
    design = np.column_stack([offsets, x - center, (x - center) ** 2])
    solve = np.linalg.pinv(design)
    theta = solve @ y
    residual = y - design @ theta
    freedom = own + prior.weight
    noise = math.sqrt((float(residual @ residual) + prior.weight * prior.size**2) / freedom)
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = theta[:, None] + solve @ (noise * rng.standard_t(freedom, size=(len(y), DRAWS)))
    low, high = min(x) - center, max(x) - center
    at = _vertex(theta[:, None], low, high)
    at_draws = _vertex(draws, low, high)
    count = len(kinds)
    between = float(theta[:count].std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    loss = _value(theta[:, None], at, count)
    loss_draws = _value(draws, at_draws, count) + between * rng.standard_t(max(count - 1, 1), size=DRAWS)
    return Optimum(
        float(at[0]) + center, float(loss[0]), at_draws + center, loss_draws, noise, count, False, round(freedom)
    )


def _vertex(theta: Array, low: float, high: float) -> Array:
    """The minimum of each column's parabola inside [low, high]; of an upside-down one, the lower end."""
    slope, curve = theta[-2], theta[-1]
    inner = np.clip(-slope / np.where(curve > 0, 2 * curve, 1.0), low, high)
    ends = np.where(slope * low + curve * low**2 < slope * high + curve * high**2, low, high)
    return np.where(curve > 0, inner, ends)


def _value(theta: Array, at: Array, seeds: int) -> Array:
    value: Array = theta[:seeds].mean(axis=0) + theta[-2] * at + theta[-1] * at**2
    return value
