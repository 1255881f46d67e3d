"""Fit the loss around its optimum in (log2 strength, log2 rate), a quadratic per seed, and from those the powers of N."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from loopscale.exponent.plan import Axis
from loopscale.records import Estimate
from loopscale.transfer.estimate import along_loops, over_seeds, paired

Array = NDArray[np.float64]
Point = tuple[int, int]  # strength index, rate index
ROUNDING = 1e-9  # octaves: a vertex at the outermost cells themselves lies inside
REACH = 2  # steps from the best cell that enter the fit, where all seeds trained them


@dataclass(frozen=True)
class Surface:
    """The optimum over strength and rate at one N.

    `at`: its log2 strength and log2 rate. `losses`: the loss there, by seed. `shifts`: how far each seed's own optimum lies
    from it, in octaves of strength and rate, to first order. `reach`: what was fitted, per axis, in octaves. `hessian`: of
    the mean surface, nats per octave^2. `edge`: no optimum lies inside what was tried, so no interval is claimed.
    """

    at: tuple[float, float]
    losses: tuple[float, ...]
    shifts: tuple[tuple[float, float], ...]
    reach: tuple[tuple[float, float], tuple[float, float]]
    hessian: tuple[tuple[float, float], tuple[float, float]]
    edge: bool = False

    @property
    def strength(self) -> float:
        """The fitted strength."""
        return float(2.0 ** self.at[0])

    @property
    def lr(self) -> float:
        """The fitted hidden rate."""
        return float(2.0 ** self.at[1])

    @property
    def loss(self) -> Estimate:
        """The loss at the optimum."""
        return over_seeds(self.losses)

    def place(self, axis: int) -> Estimate:
        """Estimate log2 strength (0) or log2 rate (1) of the optimum; at an edge, without an interval."""
        if self.edge:
            return Estimate(value=self.at[axis])
        return over_seeds([self.at[axis] + shift[axis] for shift in self.shifts], self.at[axis])


def mean_losses(losses: Mapping[tuple[int, int, int], float]) -> dict[Point, float]:
    """Return the mean over seeds of each cell that has the most seeds; inf where one diverged."""
    rows = by_cell(losses)
    most = max(map(len, rows.values()), default=0)
    return {cell: fmean(row) for cell, row in rows.items() if len(row) == most}


def by_cell(losses: Mapping[tuple[int, int, int], float]) -> dict[Point, list[float]]:
    """Return cell -> losses by seed, both in order, whatever the order in which trials ended."""
    rows: dict[Point, list[float]] = {}
    for (i, j, _), loss in sorted(losses.items()):
        rows.setdefault((i, j), []).append(loss)
    return rows


def fit_surface(losses: Mapping[tuple[int, int, int], float], axes: tuple[Axis, Axis]) -> Surface | None:
    """Fit `c0 + c1 x + c2 y + c3 x^2 + c4 x y + c5 y^2`, x and y in octaves from the best cell, for each seed.

    The optimum is the vertex of the mean surface. Noise moves whole surfaces of a seed, so the intervals rest on the seeds:
    a seed whose surface has the gradient b_s at the common optimum has its own -H^-1 b_s away.

    Returns None when every cell with all seeds has a seed that diverged.
    """
    rows = {cell: row for cell, row in by_cell(losses).items() if all(map(math.isfinite, row))}
    most = max(map(len, rows.values()), default=0)
    rows = {cell: row for cell, row in rows.items() if len(row) == most}
    if not rows:
        return None
    best = min(sorted(rows), key=lambda cell: fmean(rows[cell]))
    places = {cell: _octaves(cell, best, axes) for cell in rows if all(abs(cell[k] - best[k]) <= REACH for k in (0, 1))}
    near = {cell: place for cell, place in places.items() if _dense(cell, best, rows)}
    x, y = np.array(list(near.values())).T
    columns = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    inside = all(k.min() < 0 < k.max() for k in (x, y))
    if not inside or np.linalg.matrix_rank(columns) < 6:
        return _at_edge(best, rows, axes)
    fits = np.linalg.lstsq(columns, np.array([rows[cell] for cell in near]), rcond=None)[0].T  # a row per seed
    hessians = np.stack([np.stack([2 * fits[:, 3], fits[:, 4]], 1), np.stack([fits[:, 4], 2 * fits[:, 5]], 1)], 1)
    hessian = hessians.mean(axis=0)
    if np.linalg.eigvalsh(hessian)[0] <= 0:
        return _at_edge(best, rows, axes)
    vertex = -np.linalg.solve(hessian, fits[:, 1:3].mean(axis=0))
    if not all(k.min() - ROUNDING <= at <= k.max() + ROUNDING for k, at in zip((x, y), vertex, strict=True)):
        return _at_edge(best, rows, axes)
    slopes = fits[:, 1:3] + hessians @ vertex
    shifts = -np.linalg.solve(hessian, (slopes - slopes.mean(axis=0)).T).T
    there = np.array([1, *vertex, vertex[0] ** 2, vertex[0] * vertex[1], vertex[1] ** 2])
    origin = _origin(best, axes)
    at = origin + vertex
    return Surface(
        (float(at[0]), float(at[1])),
        tuple((fits @ there).tolist()),
        tuple((float(a), float(b)) for a, b in shifts),
        (_ends(origin[0] + x), _ends(origin[1] + y)),
        ((float(hessian[0, 0]), float(hessian[0, 1])), (float(hessian[1, 0]), float(hessian[1, 1]))),
    )  # fmt: skip


def _ends(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _dense(cell: Point, best: Point, rows: Mapping[Point, list[float]]) -> bool:
    """Tell whether a cell is the best one's neighbour, or two steps away in a row or column that was trained whole."""
    far = [k for k in (0, 1) if abs(cell[k] - best[k]) == REACH]
    return all(
        {(cell[0], best[1] + j) if k == 0 else (best[0] + j, cell[1]) for j in (-1, 0, 1)} <= rows.keys() for k in far
    )


def _octaves(cell: Point, best: Point, axes: tuple[Axis, Axis]) -> tuple[float, float]:
    first, second = _origin(cell, axes) - _origin(best, axes)
    return float(first), float(second)


def _origin(cell: Point, axes: tuple[Axis, Axis]) -> Array:
    return np.array([math.log2(axis.value(index)) for axis, index in zip(axes, cell, strict=True)])


def _at_edge(best: Point, rows: Mapping[Point, list[float]], axes: tuple[Axis, Axis]) -> Surface:
    origin, row = _origin(best, axes), rows[best]
    at = (float(origin[0]), float(origin[1]))
    nothing = ((0.0, 0.0), (0.0, 0.0))
    return Surface(at, tuple(row), ((0.0, 0.0),) * len(row), ((at[0],) * 2, (at[1],) * 2), nothing, edge=True)


def powers_of(surfaces: Mapping[int, Surface]) -> tuple[Estimate, Estimate] | None:
    """Fit best eps ~ N^-a and best rate ~ N^-g by least squares over log2 N, for each seed; None if one is at an edge.

    The strengths of the surfaces are those of eps N, so a is 1 less the slope of log2 strength.
    """
    if len(surfaces) < 2 or any(surface.edge for surface in surfaces.values()):
        return None
    strength, rate = (line(surfaces, axis) for axis in (0, 1))
    a = over_seeds([1 - slope for slope in strength.by_seed], 1 - strength.value)
    return a, over_seeds([-slope for slope in rate.by_seed], -rate.value)


def bent(surfaces: Mapping[int, Surface]) -> tuple[Estimate, Estimate] | None:
    """Return the power of eps between the two smallest and between the two largest N, if they differ over the seeds (95 %).

    One power is then a mean of both, and a line through all N is no guide beyond the largest.
    """
    loops = sorted(surfaces)
    if len(loops) < 3 or powers_of(surfaces) is None:
        return None
    ends = [powers_of({n: surfaces[n] for n in pair}) for pair in (loops[:2], loops[-2:])]
    (first, _), (last, _) = (found for found in ends if found is not None)
    low, high = paired(last, first).ends
    return (first, last) if low > 0 or high < 0 else None


def line(surfaces: Mapping[int, Surface], axis: int, at: int | None = None) -> Estimate:
    """Estimate the slope of an axis over log2 N, or its value at N = `at`."""
    return along_loops({n: (one.at[axis], [shift[axis] for shift in one.shifts]) for n, one in surfaces.items()}, at)
