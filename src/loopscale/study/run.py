"""Run what a study asks for, each trial recorded as it ends and the page kept current; and say what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from loopscale.records import Trial
from loopscale.study.executor import Executor, Job, drive
from loopscale.study.folder import Observer, check_errors
from loopscale.train import TrainConfig


class Page(Protocol):
    """Whoever keeps a picture of the running study current."""

    def update(self) -> object:
        """Look at the study again; called before the first trial and after each."""


class Asking(Protocol):
    """A study that gives out its trials and keeps them."""

    errors: list[str]

    @property
    def trials(self) -> dict[str, Trial]:
        """The finished trials by key."""

    def next_job(self) -> Job | None:
        """Give out the next trial; None when there is none before a running one has ended."""

    def record(self, trial: Trial) -> None:
        """Keep a finished trial."""

    def left(self) -> int:
        """Count the trials that run or are known to be missing."""


S = TypeVar("S", bound=Asking)


def run_asked(study: S, executor: Executor, observer: Observer, page: Callable[[S], Page] | None = None) -> None:
    """Run all that `study` asks for; raise `UserError` when workers keep dying, or every trial raises."""
    update = page(study).update if page else lambda: None
    update()

    def keep(record: dict[str, Any]) -> None:
        study.record(Trial.model_validate(record))
        check_errors(study.errors, len(study.trials))
        observer.ended(record, len(study.trials), study.left())
        update()

    drive(executor, study.next_job, keep)
    check_errors(study.errors, len(study.trials), least=1)


def provenance_of(base: TrainConfig, data: dict[str, Any], folder: Path, started: float) -> dict[str, Any]:
    """Return where the result in `folder` comes from; its seconds go on from an earlier, finished call."""
    from loopscale.train import provenance

    values = base.model_dump(mode="json")
    try:
        before = float(json.loads((folder / "result.json").read_text())["provenance"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        before = 0.0
    sections = {section: values[section] for section in ("model", "optim", "train")}
    return {**provenance(), "data": data, **sections, "seconds": round(time.monotonic() - started + before, 1)}
