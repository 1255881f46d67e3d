"""A study in its folder: its design and its trials, asked for one after the other until none is missing."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from loopscale.errors import UserError
from loopscale.files import held
from loopscale.records import Journal, Trial, read_record, write_record
from loopscale.study.design import Design
from loopscale.study.executor import Executor, Job, drive
from loopscale.study.folder import LOCK, Observer, Silent, changes, check_errors, driven, refuse
from loopscale.study.local import LocalProcesses
from loopscale.study.trial import trial_key


class Page(Protocol):
    """Whoever keeps a picture of the running study current."""

    def update(self) -> object:
        """Look at the study again; called before the first trial and after each."""


def run_trials(
    trials: Mapping[str, Trial],
    executor: Executor,
    next_job: Callable[[], Job | None],
    record: Callable[[Trial], tuple[int, int | None]],
    observer: Observer,
) -> None:
    """Run jobs until `next_job` has none.

    `record` keeps a trial that has ended, on disk first and then in `trials`; it gives how many have ended and how many are
    known to be left, for the observer.

    Raises `UserError` as `drive` does, and when every trial raises.
    """

    def keep(found: dict[str, Any]) -> None:
        trial = Trial.model_validate(found)
        finished, left = record(trial)
        check_errors(trials.values())
        observer.ended(trial, finished, left)

    drive(executor, next_job, keep)


@contextmanager
def holding(folder: Path, plan: Design, noun: str) -> Iterator[None]:
    """Hold a folder for the trials of a plan, and write the plan: more of the same kind of trials may be asked.

    Raises `UserError` when a value changed that gives equal cells a different meaning, and as `driven` does.
    """
    with driven(folder, plan.FILE, noun):
        path, record = folder / plan.FILE, plan.to_record()
        old = read_record(path, plan.RECORD) if path.exists() else None
        if old is not None and old != record:
            refuse(folder, noun, changes(plan.from_record(old).meaning(), plan.meaning()))
        if old != record:
            write_record(path, record)
        yield


class StudyFolder(ABC):
    """A design and its trials: `open` the folder to run it, `load` it to look at it, `run` it to its end.

    Raises `UserError` when the folder holds another study, something else, or a damaged record.
    """

    NOUN: ClassVar[str]
    DESIGN: ClassVar[type[Design]]

    def __init__(self, folder: Path, plan: Any) -> None:
        self.folder, self.plan, self.journal = folder, plan, Journal(folder)
        self._given, self._running = set[Any](), 0

    @property
    def trials(self) -> dict[str, Trial]:
        """The finished trials by key."""
        return self.journal.trials

    @classmethod
    @contextmanager
    def open(cls, folder: Path, plan: Any) -> Iterator[Self]:
        """Create the folder or continue it, as its only driver; raises `UserError` as `holding` does."""
        with holding(folder, plan, cls.NOUN):
            yield cls(folder, plan)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a study as it lies on disk, finished or not."""
        path = folder / cls.DESIGN.FILE
        if not path.exists():
            raise UserError(f"{folder} holds no {cls.NOUN}: it has no {cls.DESIGN.FILE}")
        return cls(folder, cls.DESIGN.from_record(read_record(path, cls.DESIGN.RECORD)))

    @classmethod
    @contextmanager
    def run(
        cls,
        folder: Path,
        plan: Any,
        executor: Executor | None,
        observer: Observer | None,
        page: Callable[[Any], Page] | None,
    ) -> Iterator[tuple[Self, dict[str, Any]]]:
        """Run or continue a study to its end; give it, with the provenance of its result, while the folder is held.

        Raises `UserError` as `Design.check` and `open`, when workers keep dying, or every trial raises.
        """
        started, runner, observer = time.monotonic(), executor or LocalProcesses(), observer or Silent()
        description = plan.check(runner)
        observer.checked(description)
        with cls.open(folder, plan) as study:
            study.drive(runner, observer, page)
            yield study, study.provenance(description, started)

    def driven(self) -> bool:
        """Tell whether a process runs the study now."""
        return held(self.folder / LOCK)

    def drive(self, executor: Executor, observer: Observer, page: Callable[[Any], Page] | None) -> None:
        """Run all that is missing, each trial recorded as it ends and the page kept current."""
        update = page(self).update if page else lambda: None
        update()

        def record(trial: Trial) -> tuple[int, int]:
            self.record(trial)
            update()
            return len(self.trials), self.left()

        run_trials(self.trials, executor, self.next_job, record, observer)
        check_errors(self.trials.values(), least=1)

    def record(self, trial: Trial) -> None:
        """Keep a finished trial, on disk first; once."""
        self.journal.append(trial)
        self._running -= 1
        self._note(trial)

    def provenance(self, data: dict[str, Any], started: float) -> dict[str, Any]:
        """Return where the result comes from and what it took; seconds go on from an earlier, finished call."""
        from loopscale.train import provenance

        values = self.plan.base.model_dump(mode="json")
        errors = [trial.error for trial in self.trials.values() if trial.error is not None]
        try:
            before = float(json.loads((self.folder / "result.json").read_text())["provenance"]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            before = 0.0
        return {
            **provenance(),
            "data": data,
            **{section: values[section] for section in ("model", "optim", "train")},
            "seconds": round(time.monotonic() - started + before, 1),
            "trials": len(self.trials),
            **({"errors": errors} if errors else {}),
            "trial_seconds": round(sum(trial.seconds for trial in self.trials.values()), 1),
        }

    def next_job(self) -> Job | None:
        """Give out the next trial; None when there is none before a running one has ended."""
        for queue in self._queues():
            while queue:
                cell = queue.popleft()
                if cell not in self._given:
                    return self._job(cell)
        return None

    def left(self) -> int:
        """Count the trials that run or are known to be missing."""
        return self._running + sum(map(len, self._queues()))

    @abstractmethod
    def _queues(self) -> Iterable[deque[Any]]:
        """Return the cells that are asked for and not given yet, the first to run first."""

    @abstractmethod
    def _job(self, cell: Any) -> Job:
        """Return the job of a cell, by `_give`."""

    @abstractmethod
    def _note(self, trial: Trial) -> None:
        """Take in a trial that has ended."""

    def _give(self, cell: Any, where: dict[str, Any], config: dict[str, Any]) -> Job:
        """Return a cell's job, once; raise `UserError` where its trial ran and lies under another cell."""
        key = trial_key(config)
        if key in self.trials and not self.trials[key].stopped:
            raise UserError(f"trial {key} in {self.folder} is damaged (its cell is not its config's): {Trial.FIX}")
        self._given.add(cell)
        self._running += 1
        return key, where, config
