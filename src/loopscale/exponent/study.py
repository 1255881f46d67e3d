"""Know an exponent study: what ran, and which trials each of its stages asks for next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from loopscale.exponent.plan import PILOT_SEEDS, RULE, Axis, Cell, ExponentPlan, powers, starts_anew
from loopscale.exponent.surface import Point, Surface, fit_surface, mean_losses
from loopscale.records import Trial
from loopscale.study import Job, StudyFolder
from loopscale.transfer.estimate import Losses, Optimum, best_rate, fit_optimum

FARTHEST = 4  # steps beyond the start of an axis at which the search gives up
OUTSIDE = 0.1  # the share of seeds whose own optimum may lie beyond the cells that all seeds trained

GridLosses = Mapping[tuple[int, int, int], float]  # (strength index, rate index, seed) -> loss, inf when diverged


def wanted(losses: GridLosses, axes: tuple[Axis, Axis], seeds: int) -> list[tuple[int, int, int]]:
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


def _located(losses: GridLosses, axes: tuple[Axis, Axis]) -> tuple[Point, list[tuple[int, int, int]]]:
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


def _missing(losses: GridLosses, cells: Iterable[Point], seeds: int) -> list[tuple[int, int, int]]:
    ordered = sorted(cells)
    return [(*cell, seed) for seed in range(seeds) for cell in ordered if (*cell, seed) not in losses]


def _only(losses: GridLosses, cells: set[Point], seeds: int) -> dict[tuple[int, int, int], float]:
    return {(*cell, seed): losses[(*cell, seed)] for cell in sorted(cells) for seed in range(seeds)}


T = TypeVar("T")
BEST = "best at this N"  # the way that tunes again at the largest N


class ExponentStudy(StudyFolder):
    """The study of the powers of N.

    Its stages: the outer rate at the smallest N (unless the plan gives it), the grid at each N, then the fresh seeds, which
    compare at the largest N what each way of carrying makes of the optimum at the smallest, and put N = 1 beside it.
    """

    NOUN, DESIGN = "exponent study", ExponentPlan
    plan: ExponentPlan

    def __init__(self, folder: Path, plan: ExponentPlan) -> None:
        super().__init__(folder, plan)
        self._losses = {_cell(trial): trial.height for trial in self.trials.values()}
        self._asked: deque[Cell] | None = None
        self._memo: dict[tuple[str, int], Any] = {}  # what follows from the losses at one N (0: at all)

    def _note(self, trial: Trial) -> None:
        cell = _cell(trial)
        self._losses[cell] = trial.height
        self._asked = None
        if cell.seed not in self.plan.fresh_seeds:  # those change nothing of what is asked
            self._memo = {at: value for at, value in self._memo.items() if at[1] not in (0, cell.loops)}

    def _job(self, cell: Cell) -> Job:
        return self._give(cell, cell.to_json(), self.plan.job_config(cell))

    # --- what the stages found so far

    @property
    def first(self) -> int:
        """The smallest N of the grid."""
        return min(self.plan.loops)

    @property
    def last(self) -> int:
        """The largest N of the grid."""
        return max(self.plan.loops)

    def pilot(self) -> Losses:
        """Return (outer rate, seed) -> loss at the smallest N, at the middle of the grid."""
        middle = self.plan.sample(self.first)
        return {
            (cell.outer_rate, cell.seed): loss
            for cell, loss in self._losses.items()
            if (cell.loops, cell.strength, cell.lr, cell.longer) == (self.first, middle.strength, middle.lr, 1.0)
            and cell.rule == RULE
            and cell.seed < PILOT_SEEDS
        }

    def pilot_optimum(self) -> Optimum | None:
        """Fit the outer rate's optimum; None when the plan gives the rate, or every trial diverged."""
        asked = self._pilot_rates() if self.plan.outer_rate is None else []
        known = {at: loss for at, loss in self.pilot().items() if at[0] in asked}
        return fit_optimum(known) if known else None

    @cached_property
    def _pilot_axis(self) -> Axis:
        rate = self.plan.base.optim.lr * self.plan.base.optim.outer_lr
        return Axis(tuple(float(f"{rate * 2.0**k:.6g}") for k in (-1, 0, 1)))

    def outer_rate(self) -> float | None:
        """Return the rate of embedding and readout: the plan's, or the pilot's optimum once that has ended."""
        if self.plan.outer_rate is not None:
            return self.plan.outer_rate
        return self._once("outer rate", self.first, self._piloted)

    def _piloted(self) -> float | None:
        if self._pilot_wanted():
            return None
        optimum = self.pilot_optimum()
        return None if optimum is None else float(f"{optimum.lr:.3g}")

    def grid(self, loops: int) -> dict[tuple[int, int, int], float]:
        """Return (strength index, rate index, seed) -> loss at this N."""
        return self._once("grid", loops, lambda: self._grid(loops))

    def _grid(self, loops: int) -> dict[tuple[int, int, int], float]:
        outer, (strengths, lrs) = self.outer_rate(), self._index
        return {
            (strengths[cell.strength], lrs[cell.lr], cell.seed): loss
            for cell, loss in self._losses.items()
            if (cell.loops, cell.outer_rate, cell.longer, cell.rule) == (loops, outer, 1.0, RULE)
            and cell.strength in strengths
            and cell.lr in lrs
            and cell.seed < self.plan.seeds
        }

    def surface(self, loops: int) -> Surface | None:
        """Fit the optimum at this N to the cells that all seeds trained; None before there are any."""
        known = self.grid(loops)
        return self._once("surface", loops, lambda: fit_surface(known, self.plan.axes) if known else None)

    def complete(self, loops: int) -> bool:
        """Tell whether the grid at this N asks for nothing more."""
        return self.outer_rate() is not None and not self._wanted_at(loops)

    def _wanted_at(self, loops: int) -> list[tuple[int, int, int]]:
        return self._once("wanted", loops, lambda: wanted(self.grid(loops), self.plan.axes, self.plan.seeds))

    def _once(self, what: str, loops: int, find: Callable[[], T]) -> T:
        """Return what `find` gives, kept until a trial at this N ends (0: at any)."""
        if (what, loops) not in self._memo:
            self._memo[what, loops] = find()
        found: T = self._memo[what, loops]
        return found

    def ways(self) -> dict[str, tuple[str, float, float]]:
        """Return, for each way to carry and `BEST`, rule, strength and rate at the largest N; empty before the grids."""
        return self._once("ways", 0, self._ways)

    def _ways(self) -> dict[str, tuple[str, float, float]]:
        if not all(self.complete(loops) for loops in self.plan.loops):
            return {}
        low, high = self.surface(self.first), self.surface(self.last)
        if low is None or high is None or low.edge or high.edge:
            return {}
        found, ratio = {BEST: (RULE, high.strength, high.lr)}, self.last / self.first
        for way in self.plan.carry:
            if starts_anew(way):
                found[way] = (way, 1.0, low.lr)
            else:
                a, g = powers(way)
                found[way] = (RULE, low.strength * ratio ** (1 - a), low.lr * ratio**-g)
        return {way: (rule, _rounded(strength), _rounded(lr)) for way, (rule, strength, lr) in found.items()}

    def fresh(self, cells: list[Cell]) -> list[float] | None:
        """Return the losses of cells, inf where one diverged; None unless all ran."""
        return [self._losses[cell] for cell in cells] if all(cell in self._losses for cell in cells) else None

    def way_cells(self, way: str) -> list[Cell]:
        """Return the cells of a way to carry: one per fresh seed."""
        rule, strength, lr = self.ways()[way]
        return [self._cell(self.last, strength, lr, seed, rule=rule) for seed in self.plan.fresh_seeds]

    def single_cells(self, longer: float) -> list[Cell]:
        """Return the cells of N = 1, with the values of the smallest N, at `longer` times the steps: one per fresh seed."""
        low = self.surface(self.first)
        if low is None or low.edge:
            return []
        strength, lr = _rounded(low.strength), _rounded(low.lr)
        return [self._cell(1, strength, lr, seed, longer) for seed in self.plan.fresh_seeds]

    # --- what is asked

    def _queues(self) -> tuple[deque[Cell]]:
        if self._asked is None:
            known = self._losses.keys() | self._given
            self._asked = deque(cell for cell in self._wanted() if cell not in known)
        return (self._asked,)

    def _wanted(self) -> list[Cell]:
        missing = self._pilot_wanted()
        if missing:
            return missing
        outer = self.outer_rate()
        if outer is None:
            return []
        strengths, lrs = self.plan.axes
        asked = [
            Cell(loops, strengths.value(i), lrs.value(j), outer, seed)
            for loops in sorted(self.plan.loops, reverse=True)  # the dearest first, so that the cores end together
            for i, j, seed in self._wanted_at(loops)
        ]
        if asked:
            return sorted(asked, key=lambda cell: cell.seed)
        by_way = [self.way_cells(way) for way in self.ways()]
        by_way += [self.single_cells(1.0), self.single_cells(self.plan.longer)] if by_way else []
        return [cell for row in zip(*by_way, strict=True) for cell in row]

    def _pilot_wanted(self) -> list[Cell]:
        if self.plan.outer_rate is not None:
            return []
        known = self.pilot()
        middle = self.plan.sample(self.first)
        asked = self._pilot_rates()
        missing = [(rate, seed) for seed in range(PILOT_SEEDS) for rate in asked if (rate, seed) not in known]
        return [Cell(self.first, middle.strength, middle.lr, rate, seed) for rate, seed in missing]

    def _pilot_rates(self) -> list[float]:
        """Walk from the config's outer rate, an octave a step, until the best has one on either side, at most ten steps."""
        known, asked = self.pilot(), {-1, 0, 1, 2, 3}
        while True:
            rates = {index: self._pilot_axis.value(index) for index in asked}
            if any((rate, seed) not in known for rate in rates.values() for seed in range(PILOT_SEEDS)):
                return sorted(rates.values())
            best = best_rate({at: loss for at, loss in known.items() if at[0] in rates.values()})
            index = next(index for index, rate in rates.items() if rate == best)
            more = {k for k in (index - 1, index + 1) if -10 <= k <= 10}
            if more <= asked:
                return sorted(rates.values())
            asked |= more

    @cached_property
    def _index(self) -> tuple[dict[float, int], dict[float, int]]:
        first, second = (
            {axis.value(k): k for k in range(-FARTHEST, len(axis.start) + FARTHEST)} for axis in self.plan.axes
        )
        return first, second

    def _cell(self, loops: int, strength: float, lr: float, seed: int, longer: float = 1.0, rule: str = RULE) -> Cell:
        return Cell(loops, strength, lr, self.outer_rate() or 0.0, seed, longer, rule)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _cell(trial: Trial) -> Cell:
    at = trial.cell
    values = at.values
    return Cell(at.loops, values["strength"], values["lr"], values["outer_rate"], at.seed, values["longer"], at.rule)
