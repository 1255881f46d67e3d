"""Decide which cells of the grid one N still needs: find the valley with one seed, then train its bottom with all seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from loopscale.exponent.plan import Axis
from loopscale.exponent.surface import Point, Surface, fit_surface, mean_losses

FARTHEST = 4  # steps beyond the start of an axis at which the search gives up
OUTSIDE = 0.1  # the share of seeds whose own optimum may lie beyond the cells that all seeds trained

Losses = Mapping[tuple[int, int, int], float]  # (strength index, rate index, seed) -> loss, inf when diverged


def wanted(losses: Losses, axes: tuple[Axis, Axis], seeds: int) -> list[tuple[int, int, int]]:
    """Return the (strength index, rate index, seed) to run next; nothing when this N is complete.

    Seed 0 trains the start of the grid and walks on until its best cell has a neighbour on every side. Then all seeds
    train the best cell and its eight neighbours, again until the best mean lies inside. If more than `OUTSIDE` of the
    seeds have their own optimum beyond these cells along an axis, two steps of that axis are trained on either side.
    The answer depends on `losses` alone, in any order, so a study that is stopped and started again asks the same.
    """
    best, missing = _located(losses, axes)
    if missing:
        return missing
    block = around(best, axes)
    while True:
        missing = _missing(losses, block, seeds)
        if missing:
            return missing
        best = _best(mean_losses(_only(losses, block, seeds)))
        reach = around(best, axes)
        if reach <= block:
            break
        block |= reach
    surface = fit_surface(_only(losses, block, seeds), axes)
    if surface is not None:
        block |= around(best, axes, tuple(2 if share > OUTSIDE else 1 for share in outside(surface)))
    return _missing(losses, block, seeds)


def outside(surface: Surface) -> tuple[float, float]:
    """Return, per axis, the share of seeds whose own optimum lies beyond the cells that were fitted with one step."""
    shares = []
    for axis in range(2):
        low, high = surface.reach[axis]
        own = [surface.at[axis] + shift[axis] for shift in surface.shifts]
        shares.append(sum(not low <= place <= high for place in own) / len(own))
    return shares[0], shares[1]


def around(best: Point, axes: tuple[Axis, Axis], reach: tuple[int, ...] = (1, 1)) -> set[Point]:
    """Return the cells within `reach` steps of one, those beyond the farthest left out."""
    return {
        (best[0] + i, best[1] + j)
        for i in range(-reach[0], reach[0] + 1)
        for j in range(-reach[1], reach[1] + 1)
        if all(
            -FARTHEST <= index < len(axis.start) + FARTHEST
            for index, axis in zip((best[0] + i, best[1] + j), axes, strict=True)
        )
    }


def _located(losses: Losses, axes: tuple[Axis, Axis]) -> tuple[Point, list[tuple[int, int, int]]]:
    """Walk seed 0 to the valley: its best cell, and what is missing on the way."""
    asked = {(i, j) for i in range(len(axes[0].start)) for j in range(len(axes[1].start))}
    while True:
        missing = _missing(losses, asked, 1)
        best = (0, 0) if missing else _best({cell: losses[(*cell, 0)] for cell in asked})
        if missing or around(best, axes) <= asked:
            return best, missing
        asked |= around(best, axes)


def _best(means: Mapping[Point, float]) -> Point:
    """Return the cell with the smallest loss; where all diverged, the smallest rate and strength."""
    finite = {cell: loss for cell, loss in means.items() if math.isfinite(loss)}
    return (
        min(sorted(finite), key=lambda cell: finite[cell])
        if finite
        else min(means, key=lambda cell: (cell[1], cell[0]))
    )


def _missing(losses: Losses, cells: Iterable[Point], seeds: int) -> list[tuple[int, int, int]]:
    ordered = sorted(cells)
    return [(*cell, seed) for seed in range(seeds) for cell in ordered if (*cell, seed) not in losses]


def _only(losses: Losses, cells: set[Point], seeds: int) -> dict[tuple[int, int, int], float]:
    return {(*cell, seed): losses[(*cell, seed)] for cell in sorted(cells) for seed in range(seeds)}
