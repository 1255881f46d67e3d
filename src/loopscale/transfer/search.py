"""Which trials an arm still needs: bracket the optimum on the sqrt(2) grid, then give it all seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loopscale.transfer.plan import HIGHEST, LOWEST, grid_index, grid_rate

REACH = 2  # grid steps on either side of the minimum: five rates over two octaves carry the parabola

Losses = Mapping[tuple[float, int], float]  # (rate, seed) -> validation loss, inf when diverged


def wanted(losses: Losses, seeds: int, center_lr: float, lrs: Sequence[float] | None = None) -> list[tuple[float, int]]:
    """The (rate, seed) pairs to run next, given what is known; empty when the arm is complete.

    With `lrs` the grid is fixed. Otherwise: three rates an octave apart with seed 0, then towards the smaller loss until
    the minimum has `REACH` grid steps on either side, then all seeds there. It depends on `losses` alone, so a study
    that is stopped and started again asks for the same trials.
    """
    if lrs is not None:
        return [(rate, seed) for rate in sorted(lrs) for seed in range(seeds) if (rate, seed) not in losses]
    center = grid_index(center_lr)
    coarse = [(grid_rate(center + offset), 0) for offset in (-2, 0, 2)]
    missing = [point for point in coarse if point not in losses]
    if missing:
        return missing
    around = _around(best_index(losses))
    first = [(grid_rate(k), 0) for k in around if (grid_rate(k), 0) not in losses]
    if first:
        return first
    rest = [(grid_rate(k), seed) for k in around for seed in range(1, seeds)]
    return [point for point in rest if point not in losses]


def best_index(losses: Losses) -> int:
    """Grid index of the rate with the smallest mean loss; if everything diverged, the smallest rate tried.

    A rate known for one seed only is compared by its seed-0 loss against the seed-0 losses of the others.
    """
    first = {rate: loss for (rate, seed), loss in losses.items() if seed == 0}
    finite = {rate: loss for rate, loss in first.items() if math.isfinite(loss)}
    if not finite:
        return grid_index(min(first))
    return grid_index(min(finite, key=lambda rate: finite[rate]))


def _around(index: int) -> list[int]:
    return [k for k in range(index - REACH, index + REACH + 1) if LOWEST <= k <= HIGHEST]
