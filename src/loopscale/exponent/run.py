"""Run an exponent study to its end: ask what is missing, run it, record it, write the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from loopscale.exponent.plan import ExponentPlan
from loopscale.exponent.study import ExponentStudy
from loopscale.records import Trial
from loopscale.study import Executor, LocalProcesses, Observer, Silent, check_errors, drive


class Page(Protocol):
    """Whoever keeps a picture of the running study current."""

    def update(self) -> object:
        """Look at the study again; called before the first trial and after each."""


def run_exponent(
    plan: ExponentPlan,
    folder: Path,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
    page: Callable[[ExponentStudy], Page] | None = None,
) -> None:
    """Run or continue the study in `folder`."""
    observer = observer or Silent()
    description = _checked(plan)
    observer.checked(description)
    with ExponentStudy.open(folder, plan) as study:
        update = page(study).update if page else lambda: None
        update()

        def keep(record: dict[str, Any]) -> None:
            study.record(Trial.model_validate(record))
            check_errors(study.errors, len(study.trials))
            observer.ended(record, len(study.trials), study.left())
            update()

        drive(executor or LocalProcesses(), study.next_job, keep)
        check_errors(study.errors, len(study.trials), least=1)


def _checked(plan: ExponentPlan) -> dict[str, Any]:
    if plan.own is None:
        return plan.base.load_data().description
    raise NotImplementedError
