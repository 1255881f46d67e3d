"""From local sweeps to a regret: at each size, and extrapolated to the target, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 2000
FURTHEST = 1.5  # octaves: a parabola through three points says nothing beyond
TOLERANCE = 0.005  # nats


@dataclass(frozen=True)
class Local:
    """A local sweep read: the optimum's offset from the plan in octaves, curvature, regret in nats, and their draws."""

    offset: float
    curve: float
    regret: float | None  # None: the plan diverged here
    offsets: Array
    curves: Array
    regrets: Array

    def interval(self) -> tuple[float, float]:
        """95 % interval of the regret."""
        low, high = np.quantile(self.regrets, [0.025, 0.975])
        return float(low), float(high)


def read_local(losses: Sequence[Sequence[float]], noise: float, seed: int = 0) -> Local:
    """losses: per seed, at an octave below the plan, at the plan, an octave above; inf where training diverged.

    The parabola through the means: offset -b/2c within 1.5 octaves, regret b^2/4c. A diverged neighbour is no better
    than the plan, so it takes no part. The draws shake each difference to the plan by the paired noise over sqrt(seeds).
    """
    table = np.array(losses, dtype=float)
    below, at, above = table.mean(axis=0)
    rng = np.random.Generator(np.random.PCG64(seed))
    if not math.isfinite(at):
        nothing = np.full(DRAWS, math.inf)
        return Local(math.nan, math.nan, None, nothing, nothing, nothing)
    steep = at + 1.0  # what a diverged neighbour counts as
    below, above = (steep if not math.isfinite(x) else x for x in (below, above))
    shake = noise / math.sqrt(len(table)) * rng.standard_normal((2, DRAWS + 1))
    shake[:, 0] = 0.0
    offset, curve, regret = _parabola(below - at + shake[0], above - at + shake[1])
    return Local(float(offset[0]), float(curve[0]), float(regret[0]), offset[1:], curve[1:], regret[1:])


def _parabola(below: Array, above: Array) -> tuple[Array, Array, Array]:
    slope, curve = (above - below) / 2, (above + below) / 2
    bowl = curve > 1e-9
    inner = np.clip(-slope / np.where(bowl, 2 * curve, 1.0), -FURTHEST, FURTHEST)
    offset = np.where(bowl, inner, np.where(below < above, -1.0, 1.0))
    regret = np.maximum(0.0, -(slope * offset + curve * offset**2))
    return offset, np.maximum(curve, 0.0), regret


@dataclass(frozen=True)
class Extrapolated:
    """The regret of the plan at the target along one axis and one value."""

    regret: float | None
    interval: tuple[float, float] | None
    slope: float | None  # octaves of the optimum per doubling of the axis
    sizes: int


def extrapolate(found: Mapping[int, Local], target: int) -> Extrapolated:
    """Fit the optimum's offset as a line in log2 of the size; regret at the target = curvature * offset^2.

    `found` holds the proxy too. The curvature is that of the largest size; with one size the offset is taken as constant.
    A plan that diverged on the way has no regret (None).
    """
    if any(local.regret is None for local in found.values()):
        return Extrapolated(None, None, None, len(found))
    x = np.log2(np.array(list(found), dtype=float))
    values = np.stack([np.append(local.offset, local.offsets) for local in found.values()])
    spread = ((x - x.mean()) ** 2).sum()
    slopes = (x - x.mean()) @ values / spread if spread else np.zeros(values.shape[1])
    there = values.mean(axis=0) + slopes * (math.log2(target) - x.mean())
    last = found[max(found)]
    regrets = np.append(last.curve, last.curves) * there**2
    low, high = np.quantile(regrets[1:], [0.025, 0.975])
    return Extrapolated(float(regrets[0]), (float(low), float(high)), float(slopes[0]), len(found))


def verdict(regret: float | None, interval: tuple[float, float] | None, noise: float | None) -> str:
    """holds, fails or undecided, against max(0.005 nats, seed noise)."""
    allowed = max(TOLERANCE, noise or 0.0)
    if regret is None or interval is None:
        return "fails"
    if interval[1] <= allowed:
        return "holds"
    return "fails" if interval[0] > allowed else "undecided"


def as_json(local: Local, noise: float | None) -> dict[str, Any]:
    """Plain numbers; regret also in units of seed noise."""
    if local.regret is None:
        return {"regret": None, "interval": None, "offset": None, "verdict": "fails"}
    interval = local.interval()
    return {
        "regret": local.regret,
        "interval": list(interval),
        "in_seed_noise": local.regret / noise if noise else None,
        "offset": local.offset,
        "verdict": verdict(local.regret, interval, noise),
    }
