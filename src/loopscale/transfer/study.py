"""Know a study: what ran, what each arm asks for next, and the losses of an arm; every trial is read once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from loopscale.errors import UserError
from loopscale.records import Journal, StudyRecord, Trial, read_record, write_record
from loopscale.study import Job, changes, driven, refuse, trial_key
from loopscale.transfer.optimum import Losses, best_rate
from loopscale.transfer.plan import Arm, Cell, StudyPlan
from loopscale.transfer.search import wanted

NAME = "study.json"


class Study:
    """A plan and its trials in a folder: `Study.open` to run it, `Study.load` to look at it.

    Raises `UserError` when the folder holds another study, something else, or a damaged record.
    """

    def __init__(self, folder: Path, plan: StudyPlan) -> None:
        self.folder, self.plan = folder, plan
        self.journal = Journal(folder)
        self.errors: list[str] = []  # what trials raised in which the user's code failed; they count as diverged
        self._losses: dict[Arm, dict[tuple[float, int], float]] = {}
        self._given, self._running = set[Cell](), 0
        self._arms: dict[Arm, list[Arm]] = {}  # those of one network, under the first of them
        for arm in plan.arms:
            self._arms.setdefault(plan.same_network(arm), []).append(arm)
        self._asked: dict[Arm, deque[Cell]] = {}
        for trial in self.trials.values():
            self._index(trial)

    @property
    def trials(self) -> dict[str, Trial]:
        """The finished trials by key."""
        return self.journal.trials

    @classmethod
    @contextmanager
    def open(cls, folder: Path, plan: StudyPlan) -> Iterator[Study]:
        """Create the folder or continue it, as its only driver: more rules, loops, rates, strengths and seeds may be asked.

        Raises `UserError` when a value changed that gives equal cells other trials, and as `driven` does.
        """
        with driven(folder, NAME, "study"):
            path, record = folder / NAME, plan.to_record()
            if not path.exists():
                write_record(path, record)
            elif (old := read_record(path, StudyRecord)) != record:
                refuse(folder, "study", changes(StudyPlan.from_record(old).meaning(), plan.meaning()))
                write_record(path, record)
            yield cls(folder, plan)

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read a study as it lies on disk, finished or not."""
        path = folder / NAME
        if not path.exists():
            raise UserError(f"{folder} is not a study folder: it has no {NAME}")
        return cls(folder, StudyPlan.from_record(read_record(path, StudyRecord)))

    def record(self, trial: Trial) -> None:
        """Keep a finished trial, on disk first; once."""
        self.journal.append(trial)
        self._running -= 1
        self._index(trial)

    def losses(self, arm: Arm) -> Losses:
        """Map (rate, seed) to the validation loss of an arm, inf for diverged trials."""
        return self._losses.get(self.plan.same_network(arm), {})

    def next_job(self) -> Job | None:
        """Give out the next trial; None when there is none before a running one has ended."""
        for shared in self._arms:
            asked = self._queue(shared)
            while asked:
                cell = asked.popleft()
                if cell not in self._given:
                    return self._give(cell)
        return None

    def missing(self) -> list[Cell]:
        """List the cells that are asked for now and did not run: running ones too."""
        return [cell for shared in self._arms for cell in self._wanted(shared)]

    def left(self) -> int:
        """Count the trials that run or are known to be missing."""
        return self._running + sum(len(self._queue(shared)) for shared in self._arms)

    def tuned_rate(self, arm: Arm) -> float | None:
        """Return the best rate on the grid at the smallest N of this rule and strength; None until that arm is complete."""
        base = Arm(arm.rule, arm.strength, min(self.plan.loops))
        known = self.losses(base)
        if not known or wanted(known, self.plan.seeds_at(base.loops), self.plan.center_lr, self.plan.lrs):
            return None
        return best_rate(known)

    def _index(self, trial: Trial) -> None:
        """Note a trial's loss; what is asked of its arm, and of those that wait for its rate, is then asked anew."""
        cell = trial.cell
        self.errors += [] if trial.error is None else [trial.error]
        arm = Arm(cell.rule, cell.strength or 0.0, cell.loops)
        loss = math.inf if trial.diverged or trial.loss is None else trial.loss
        self._losses.setdefault(arm, {})[cell.lr, cell.seed] = loss
        if self.plan.lrs is not None:
            return  # a fixed grid is asked for once
        for shared, arms in self._arms.items():
            if shared == arm or (arm.loops == min(self.plan.loops) and any(self._base(one) == arm for one in arms)):
                self._asked.pop(shared, None)

    def _base(self, arm: Arm) -> Arm:
        return self.plan.same_network(Arm(arm.rule, arm.strength, min(self.plan.loops)))

    def _queue(self, shared: Arm) -> deque[Cell]:
        if shared not in self._asked:
            self._asked[shared] = deque(cell for cell in self._wanted(shared) if cell not in self._given)
        return self._asked[shared]

    def _wanted(self, shared: Arm) -> list[Cell]:
        """List what the arms of one network need, then their one-shot trials at the rate tuned at the smallest N."""
        asked = wanted(
            self.losses(shared), self.plan.seeds_at(shared.loops), self.plan.center_lr, self.plan.lrs
        ) or dict.fromkeys(point for arm in self._arms[shared] for point in self._one_shot(arm))
        return [Cell(shared, rate, seed) for rate, seed in asked]

    def _one_shot(self, arm: Arm) -> list[tuple[float, int]]:
        rate = None if self.plan.lrs is not None else self.tuned_rate(arm)
        if rate is None:
            return []
        known = self.losses(arm)
        return [(rate, seed) for seed in range(self.plan.seeds_at(arm.loops)) if (rate, seed) not in known]

    def _give(self, cell: Cell) -> Job:
        config = self.plan.job_config(cell)
        key = trial_key(config)
        if key in self.trials:
            raise UserError(f"trial {key} in {self.folder} is damaged (its cell is not its config's): {Trial.FIX}")
        self._given.add(cell)
        self._running += 1
        return key, {**asdict(cell.arm), "lr": cell.lr, "seed": cell.seed}, config
