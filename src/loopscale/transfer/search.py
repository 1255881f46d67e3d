"""Which trials an arm still needs: bracket the optimum on the sqrt(2) grid with one seed, then with all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from loopscale.transfer.optimum import WINDOW, Losses, best_rate
from loopscale.transfer.plan import HIGHEST, LOWEST, grid_index, grid_rate

REACH = 2  # grid steps on either side of the minimum: five rates over two octaves carry the parabola


def wanted(
    losses: Losses, seeds: int, center_lr: float, lrs: Sequence[float] | None = None, spacing: int = 1
) -> list[tuple[float, int]]:
    """Return the (rate, seed) pairs to run next, given what is known; nothing when the arm is complete.

    With `lrs` the grid is fixed. Otherwise: two rates an octave apart with seed 0, then towards the smaller loss until
    the minimum has `REACH` grid steps on either side; then the same rates, every `spacing` grid steps, with all seeds, and
    on towards the smaller mean until that lies in the middle. The lower of the two is there first because the best rate
    falls with N where it moves: no trial is spent above it. It depends on `losses` alone, so a study that is stopped and
    started again asks for the same trials.
    """
    if lrs is not None:
        return _missing(losses, sorted(lrs), seeds)
    middle = grid_index(center_lr)
    asked = [middle - 2, middle]
    for count in (1, seeds):
        while True:
            missing = _missing(losses, map(grid_rate, asked), count)
            if missing:
                return missing
            # Only what this search asked for, whatever else was trained: the answer is one, in any order of trials.
            known = {(grid_rate(k), seed): losses[grid_rate(k), seed] for k in asked for seed in range(count)}
            around = _around(grid_index(best_rate(known)), spacing)
            if set(around) <= set(asked):
                break
            asked = sorted({*asked, *around})
        asked = around
    return []


def hopeless(losses: Losses) -> list[float]:
    """Return the rates that no parabola about the best rate of the first seed reaches: their trials may end early."""
    first = {point: loss for point, loss in losses.items() if point[1] == 0}
    best = math.log2(best_rate(first))
    return [rate for rate, _ in first if abs(math.log2(rate) - best) > WINDOW]


def wanted_best(losses: Losses, seeds: int, center_lr: float) -> list[tuple[float, int]]:
    """Return the (rate, seed) pairs to run next: rates an octave apart with seed 0, then the best one with all seeds."""
    if missing := wanted(losses, 1, center_lr, spacing=REACH):
        return missing
    return _missing(losses, [best_rate({point: loss for point, loss in losses.items() if point[1] == 0})], seeds)


def _missing(losses: Losses, rates: Iterable[float], seeds: int) -> list[tuple[float, int]]:
    return [(rate, seed) for rate in rates for seed in range(seeds) if (rate, seed) not in losses]


def _around(index: int, spacing: int) -> list[int]:
    return [k for k in range(index - REACH, index + REACH + 1, spacing) if LOWEST <= k <= HIGHEST]
