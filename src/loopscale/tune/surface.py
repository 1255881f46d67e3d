"""The fitted optimum in several values at once: a quadratic surface in search coordinates, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 400


@dataclass(frozen=True)
class Vertex:
    """The minimum of the surface and 95 % intervals by value; `noise` is the residual standard deviation, in nats."""

    at: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    loss: float
    noise: float
    freedom: int
    predicts: bool  # False: no minimum inside the points, `at` is the best point and the interval its neighbours' span
    crossed: bool  # False: too few points for the products of two values
    ends: tuple[str, ...] = ()  # by value: "below", "above" or "both" where the interval ends with the points, else ""


def needed(size: int) -> int:
    """Return the least number of finite points to fit a surface over so many values.

    1 + 2 size coefficients and one to spare.

    >>> needed(2)
    6
    """
    return 2 + 2 * size


def fit_surface(points: Sequence[Sequence[float]], losses: Sequence[float], seed: int = 0) -> Vertex | None:
    """Fit `loss = a + b.x + x.C.x` to the better two thirds of the points.

    With too few points for all of C its diagonal alone is fitted. Few points give wide intervals: residual noise with a
    Student t of its degrees of freedom, as in `fit_optimum`. None when there are too few finite points for that, too.
    """
    x, y = _near(np.array(points, dtype=float), np.array(losses, dtype=float))
    size = x.shape[1] if x.ndim == 2 else 0
    if size == 0 or len(y) < needed(size):
        return None
    crossed = len(y) >= 2 + size + size * (size + 1) // 2
    center = x[np.argmin(y)]
    design = _design(x - center, crossed)
    solve = np.linalg.pinv(design)
    theta = solve @ y
    residual = y - design @ theta
    freedom = len(y) - design.shape[1]
    noise = math.sqrt(float(residual @ residual) / freedom)
    rng = np.random.Generator(np.random.PCG64(seed))
    low, high = x.min(axis=0) - center, x.max(axis=0) - center
    draws = theta[:, None] + solve @ (noise * rng.standard_t(freedom, size=(len(y), DRAWS)))
    found = np.array([_minimum(draw, low, high, crossed)[0] for draw in draws.T])
    at, inside = _minimum(theta, low, high, crossed)
    bottom, top = np.quantile(found, [0.025, 0.975], axis=0)
    # A minimum that a draw has outside of the points is put at their edge: there ends the data, not the interval.
    under, over = bottom <= low + 1e-9, top >= high - 1e-9
    return Vertex(
        ends=tuple(
            "both" if u and o else "below" if u else "above" if o else "" for u, o in zip(under, over, strict=True)
        ),
        at=tuple(map(float, at + center)),
        low=tuple(map(float, bottom + center)),
        high=tuple(map(float, top + center)),
        loss=float((_design(at[None], crossed) @ theta)[0]),
        noise=noise,
        freedom=freedom,
        predicts=inside,
        crossed=crossed,
    )


def _near(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the better two thirds, and at least three more than the surface has coefficients: far ones are no parabola."""
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    size = x.shape[1] if x.ndim == 2 else 0
    least = 4 + size + size * (size + 1) // 2
    order = np.argsort(y)[: max(least, math.ceil(2 * len(y) / 3))]
    return x[order], y[order]


def _pairs(size: int, crossed: bool) -> list[tuple[int, int]]:
    return list(combinations_with_replacement(range(size), 2)) if crossed else [(i, i) for i in range(size)]


def _design(x: Array, crossed: bool) -> Array:
    products = [x[:, i] * x[:, j] for i, j in _pairs(x.shape[1], crossed)]
    return np.column_stack([np.ones(len(x)), x, *products])


def _minimum(theta: Array, low: Array, high: Array, crossed: bool) -> tuple[Array, bool]:
    """Find the stationary point of an upward surface, if it lies in the box, else the best grid point of the box."""
    size = len(low)
    gradient = theta[1 : 1 + size]
    hessian = np.zeros((size, size))
    for value, (i, j) in zip(theta[1 + size :], _pairs(size, crossed), strict=True):
        hessian[i, j] += value
        hessian[j, i] += value
    if np.all(np.linalg.eigvalsh(hessian) > 1e-9):
        at = np.asarray(-np.linalg.solve(hessian, gradient), dtype=np.float64)
        if np.all(at >= low) and np.all(at <= high):
            return at, True
    axes = [np.linspace(a, b, 9 if size < 4 else 5) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, size)
    best: Array = grid[np.argmin(_design(grid, crossed) @ theta)]
    return best, False
