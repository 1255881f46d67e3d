"""From local sweeps to a regret: at each size, and extrapolated to the target, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.tune.search import PairedNoise

Array = NDArray[np.float64]
DRAWS = 2000
FURTHEST = 1.5  # octaves: a parabola through three points says nothing beyond
TOLERANCE = 0.01  # nats: the regret that counts as none, unless the person allows another


@dataclass(frozen=True)
class Local:
    """A local sweep read: the optimum's offset from the plan in octaves, curvature, regret in nats, and their draws."""

    offset: float
    curve: float
    regret: float | None  # None: the plan diverged here
    offsets: Array  # empty where no noise is known: then nothing has an interval
    curves: Array
    regrets: Array

    def interval(self) -> tuple[float, float] | None:
        """Return 95 % interval of the regret; None where no noise is known."""
        return _ends(self.regrets, self.offsets)

    @property
    def inside(self) -> bool:
        """Whether the parabola has a minimum within reach of its three points; else it decides nothing."""
        return self.curve > 0 and abs(self.offset) < FURTHEST


def _ends(regrets: Array, offsets: Array) -> tuple[float, float] | None:
    """Give the interval of a regret, which begins at 0 where the optimum may lie on the plan: no draw is below 0."""
    if not len(regrets):
        return None
    low, high = np.quantile(regrets, [0.025, 0.975])
    below, above = np.quantile(offsets, [0.025, 0.975])
    return (0.0 if below <= 0 <= above else float(low)), float(high)


def read_local(losses: Sequence[Sequence[float]], noise: PairedNoise | None, seed: int = 0) -> Local:
    """Read losses: per seed, an octave below the plan, at the plan, an octave above; inf where training diverged.

    The parabola through the means: offset -b/2c within 1.5 octaves, regret b^2/4c. A diverged neighbour is no better
    than the plan, so it takes no part. The draws shake each difference to the plan by the paired noise over sqrt(seeds),
    with a Student t of its degrees of freedom; sweeps of different sizes need different `seed`s to be independent.
    """
    table = np.array(losses, dtype=float)
    below, at, above = table.mean(axis=0)
    nothing = np.array([])
    if not math.isfinite(at):
        return Local(math.nan, math.nan, None, nothing, nothing, nothing)
    steep = at + 1.0  # what a diverged neighbour counts as
    below, above = (steep if not math.isfinite(x) else x for x in (below, above))
    rng = np.random.Generator(np.random.PCG64(seed))
    shake = np.zeros((2, 1))
    if noise is not None:
        spread = noise.size / math.sqrt(len(table)) * rng.standard_t(noise.freedom, size=(2, DRAWS))
        shake = np.column_stack([shake, spread])
    offset, curve, regret = _parabola(below - at + shake[0], above - at + shake[1])
    return Local(float(offset[0]), float(curve[0]), float(regret[0]), offset[1:], curve[1:], regret[1:])


def _parabola(below: Array, above: Array) -> tuple[Array, Array, Array]:
    slope, curve = (above - below) / 2, (above + below) / 2
    bowl = curve > 1e-9
    inner = np.clip(-slope / np.where(bowl, 2 * curve, 1.0), -FURTHEST, FURTHEST)
    offset = np.where(bowl, inner, np.where(below < above, -1.0, 1.0))
    regret = np.maximum(0.0, -(slope * offset + curve * offset**2)) + 0.0  # never -0.0, which would be shown
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
    x, last = np.log2(np.array(list(found), dtype=float)), found[max(found)]
    values = np.stack([np.append(local.offset, local.offsets) for local in found.values()])
    spread = ((x - x.mean()) ** 2).sum()
    slopes = (x - x.mean()) @ values / spread if spread else np.zeros(values.shape[1])
    there = values.mean(axis=0) + slopes * (math.log2(target) - x.mean())
    curves, near = np.append(last.curve, last.curves), np.append(last.regret or 0.0, last.regrets)
    # Without a bowl there is no optimum to follow: the regret of the largest size stands in.
    regrets = np.where(curves > 0, curves * there**2, near)
    return Extrapolated(float(regrets[0]), _ends(regrets[1:], there[1:]), float(slopes[0]), len(found))


def verdict(regret: float | None, interval: tuple[float, float] | None, allowed: float = TOLERANCE) -> str:
    """Say holds, fails or undecided; without an interval nothing is decided, but a plan that diverged fails.

    The interval is of paired differences, so the limit is a fixed one: a study with more noise is not judged laxer.
    """
    if regret is None:
        return "fails"
    if interval is None:
        return "undecided"
    if interval[1] <= allowed:
        return "holds"
    return "fails" if interval[0] > allowed else "undecided"


def as_json(local: Local, seed_noise: float | None, allowed: float = TOLERANCE) -> dict[str, Any]:
    """Return plain numbers; regret also in units of seed noise. A sweep without a minimum inside decides nothing."""
    if local.regret is None:
        return {"regret": None, "interval": None, "in_seed_noise": None, "offset": None, "verdict": "fails"}
    interval = local.interval()
    return {
        "regret": local.regret,
        "interval": None if interval is None else list(interval),
        "in_seed_noise": local.regret / seed_noise if seed_noise else None,
        "offset": local.offset,
        "verdict": verdict(local.regret, interval, allowed) if local.inside else "undecided",
    }
