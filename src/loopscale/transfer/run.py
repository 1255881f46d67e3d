"""Run a study to its end: ask what is missing, run it, record it, judge it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopscale.records import Result, write_record
from loopscale.study import Executor, LocalProcesses, Observer, Page, Silent, provenance_of, run_asked
from loopscale.transfer.plan import Arm, Cell, StudyPlan
from loopscale.transfer.result import summarise
from loopscale.transfer.study import Study


def run_study(
    plan: StudyPlan,
    folder: Path,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
    page: Callable[[Study], Page] | None = None,
) -> dict[str, Any]:
    """Run or continue the study in `folder` and write `result.json`; returns its content.

    `page` makes the picture of the running study, such as `loopscale.report.StudyPage`.

    Stop it anywhere and call it again, with more rules, loops, rates, strengths or seeds if you like: finished trials are
    read from disk.

    Raises `UserError` for a folder of another study or one that another process drives, bad data, workers that keep dying,
    or when every trial raises.
    """
    started, observer = time.monotonic(), observer or Silent()
    # First, so that bad data leaves no folder behind; packed once here, so that the workers find it in the cache.
    runner = executor or LocalProcesses()
    description = _checked(plan, runner)
    observer.checked(description)
    with Study.open(folder, plan) as study:
        run_asked(study, runner, observer, page)
        result = summarise(study, provenance_of(plan.base, description, folder, started))
        write_record(folder / "result.json", Result.model_validate(result))
    return result


def _checked(plan: StudyPlan, executor: Executor) -> dict[str, Any]:
    """Raise `UserError` when the data, or the user's model, cannot be used, or a trial is too large for this machine."""
    size = plan.base.model
    there = Cell(Arm(size.rule, size.strength, max(plan.loops)), plan.center_lr, 0)
    if plan.user_code is None:
        executor.check_room(plan.config(there))
        return plan.base.load_data().description
    here = Cell(Arm(size.rule, size.strength, size.loops), plan.center_lr, plan.base.train.seed)
    return plan.user_code.check(plan.config(here), plan.config(there))
