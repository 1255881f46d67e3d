"""Know a study: what ran, what each arm asks for next, and the losses of an arm; every trial is read once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from loopscale.records import Trial
from loopscale.study import Job, StudyFolder, thresholds
from loopscale.transfer.estimate import WINDOW, Losses, best_rate, fit_optimum
from loopscale.transfer.plan import HIGHEST, LOWEST, Arm, Cell, StudyPlan, grid_index, grid_rate

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


OUTER_START = 4.0  # times the hidden rate: where the pilot's search for the outer rate begins
LONGER = -0.32  # power of the steps in the best rate (arXiv:2409.19913): where the search at more steps begins


class Study(StudyFolder):
    """The study of rules over loops: every arm's search, and the trials that follow from what it found."""

    NOUN, DESIGN = "study", StudyPlan
    plan: StudyPlan

    def __init__(self, folder: Path, plan: StudyPlan) -> None:
        super().__init__(folder, plan)
        self._losses: dict[Arm, dict[tuple[float, int], float]] = {}
        self._ended: dict[Arm, set[tuple[float, int]]] = {}  # trials that were hopeless and ended early
        self._rows: dict[Arm, list[list[float]]] = {}
        self._arms: dict[Arm, list[Arm]] = {}  # those of one network, under the first of them
        # The smallest N first: others wait for its rate, and one loop beside them takes as long as they do.
        for arm in sorted(plan.arms, key=lambda arm: arm.loops != min(plan.loops)):
            self._arms.setdefault(plan.same_network(arm), []).append(arm)
        self._asked: dict[Arm, deque[Cell]] = {}
        self._outer: float | None = None
        self._beside: tuple[Arm, Arm | None] | None = None
        for trial in self.trials.values():
            self._note(trial)

    def losses(self, arm: Arm) -> Losses:
        """Map (rate, seed) to the validation loss of an arm, inf for diverged trials."""
        return self._losses.get(self.plan.same_network(arm), {})

    def missing(self) -> list[Cell]:
        """List the cells that are asked for now and did not run: running ones too."""
        return [cell for shared in self._open() for cell in self._wanted(shared)]

    def tuned_rate(self, arm: Arm) -> float | None:
        """Return the best rate on the grid at the smallest N of this rule and strength; None until that arm is complete."""
        return self._best(Arm(arm.rule, arm.strength, min(self.plan.loops)))

    def outer_rate(self) -> float | None:
        """Return the rate of embedding, readout and final norm, as the pilot found it; None before, and without one."""
        pilot = self.plan.pilot
        if self._outer is None and pilot is not None:
            known = self.losses(pilot)
            if known and not self._wanted(pilot):
                found = fit_optimum(known)
                self._outer = grid_rate(grid_index(best_rate(known) if found is None else found.lr))
        return self._outer

    def beside(self) -> tuple[Arm, Arm | None] | None:
        """Return the arms of one loop (`StudyPlan.one_loop`) at the first rule's tuned strength; None until it is known."""
        if self._beside is None and self.plan.beside_one and max(self.plan.loops) > 1:
            rule, first = self.plan.rules[0], min(self.plan.loops)
            if all(self._best(Arm(rule, strength, first)) for strength in self.plan.strengths):
                self._beside = self.plan.one_loop(self.tuned_strength(rule))
        return self._beside

    def tuned_strength(self, rule: str) -> float:
        """Return the strength with the smallest loss at the smallest N, where it is tuned, once."""
        return self.best_strength(rule, min(self.plan.loops))

    def best_strength(self, rule: str, loops: int) -> float:
        """Return the strength with the smallest loss at so many loops."""

        def loss(strength: float) -> float:
            optimum = fit_optimum(self.losses(Arm(rule, strength, loops)))
            return math.inf if optimum is None else optimum.loss

        return min(self.plan.strengths, key=loss)

    def _best(self, arm: Arm) -> float | None:
        """Return the best rate of an arm; None until it is complete."""
        known = self.losses(arm)
        return best_rate(known) if known and not self._searched(arm) else None

    def _open(self) -> list[Arm]:
        """List the arms of which trials can be asked for: none but the pilot's before the outer rate is known."""
        if self.plan.pilot is not None and self.outer_rate() is None:
            return [self.plan.pilot]
        beside = [self.plan.same_network(arm) for arm in self.beside() or () if arm is not None]
        return [*(arm for arm in beside if arm not in self._arms), *self._arms]

    def _note(self, trial: Trial) -> None:
        """Note a trial's loss; what is asked of its arm, and of those that wait for its rate, is then asked anew."""
        cell = trial.cell
        arm = self._arm(trial)
        if trial.stopped:
            self._ended.setdefault(arm, set()).add((cell.lr, cell.seed))
            self._given.discard(Cell(arm, cell.lr, cell.seed))
        else:
            self._losses.setdefault(arm, {})[cell.lr, cell.seed] = trial.height
        if arm == self.plan.pilot and (outer := self.outer_rate()) is not None:
            # The pilot's trial at the rate that it found is one of the study's own.
            known = self._losses.setdefault(self.plan.same_network(replace(arm, swept="lr")), {})
            known |= {
                (self.plan.center_lr, seed): loss for (rate, seed), loss in self.losses(arm).items() if rate == outer
            }
        if self.plan.lrs is not None and arm in self._arms and not self._first_seed_ends(arm, cell.seed):
            return  # a fixed grid is asked for once, or twice: the first seed, then the others
        self._asked.pop(arm, None)
        for shared, arms in self._arms.items():
            if shared == arm or (arm.loops == min(self.plan.loops) and any(self._base(one) == arm for one in arms)):
                self._asked.pop(shared, None)

    def _first_seed_ends(self, arm: Arm, seed: int) -> bool:
        """Say whether what the other seeds may do is known only now, or a whole trial is needed where one was stopped."""
        if seed == 0 or not self._ended:
            return self.plan.early_end and seed == 0
        return arm in self._ended or arm.loops == min(self.plan.loops)

    def _base(self, arm: Arm) -> Arm:
        return self.plan.same_network(Arm(arm.rule, arm.strength, min(self.plan.loops)))

    def _queues(self) -> Iterator[deque[Cell]]:
        for shared in self._open():
            if shared not in self._asked:
                self._asked[shared] = deque(cell for cell in self._wanted(shared) if cell not in self._given)
            yield self._asked[shared]

    def _wanted(self, shared: Arm) -> list[Cell]:
        """List what the arms of one network need, then their one-shot trials at the rate tuned at the smallest N."""
        asked = self._searched(shared) or dict.fromkeys(
            point for arm in self._arms.get(shared, ()) for point in self._one_shot(arm)
        )
        return [Cell(shared, rate, seed) for rate, seed in asked]

    def _searched(self, arm: Arm) -> list[tuple[float, int]]:
        """List what the search for an arm's best rate asks for."""
        known, plan = self.losses(arm), self.plan
        if arm == plan.pilot:
            return wanted(known, 1, plan.center_lr * OUTER_START, spacing=REACH)
        if arm.steps:
            tuned = self._best(replace(arm, steps=0))
            begin = (tuned or 0.0) * (arm.steps / plan.base.train.steps) ** LONGER
            return wanted_best(known, plan.seeds, begin) if tuned else []
        if plan.lrs is not None and plan.early_end:
            if first := wanted(known, 1, plan.center_lr, plan.lrs):
                return first
            known = {**dict.fromkeys(self._ended.get(arm, ()), math.inf), **known}
        return wanted(known, plan.seeds, plan.center_lr, plan.lrs, plan.spacing)

    def _one_shot(self, arm: Arm) -> list[tuple[float, int]]:
        if self.plan.lrs is not None and not self._ended.get(self.plan.same_network(arm)):
            return []  # the grid has it
        rate, known = self.tuned_rate(arm), self.losses(arm)
        if rate is None:
            return []
        return [(rate, seed) for seed in range(self.plan.seeds) if (rate, seed) not in known]

    def _job(self, cell: Cell) -> Job:
        config = self.plan.job_config(cell, self._outer)
        usual = {"steps": 0, "swept": "lr"}
        said = {name: value for name, value in asdict(cell.arm).items() if usual.get(name) != value}
        key, where, config = self._give(cell, {**said, "lr": cell.lr, "seed": cell.seed}, config)
        stop = [] if key in self.trials else self._thresholds(cell)
        return key, where, {**config, "stop": stop} if stop else config

    def _thresholds(self, cell: Cell) -> list[list[float]]:
        """Return where a trial ends early, by the arm's trials with the first seed alone: in any order the same."""
        arm, plan = cell.arm, self.plan
        if not plan.early_end or plan.lrs is None or cell.seed == 0 or arm not in self._arms:
            return []
        if cell.lr not in hopeless(self.losses(arm)):
            return []
        if arm not in self._rows:
            found = [trial for trial in self.trials.values() if trial.cell.seed == 0 and self._arm(trial) == arm]
            self._rows[arm] = thresholds(found, plan.base.train.steps)
        return self._rows[arm]

    @staticmethod
    def _arm(trial: Trial) -> Arm:
        cell = trial.cell
        return Arm(cell.rule, cell.strength or 0.0, cell.loops, cell.steps, cell.swept)
