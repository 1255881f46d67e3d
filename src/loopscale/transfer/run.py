"""Run a study to its end: ask what is missing, run it, record it, judge it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopscale.records import Result, write_record
from loopscale.study import Executor, Observer, Page
from loopscale.transfer.plan import StudyPlan
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
    with Study.run(folder, plan, executor, observer, page) as (study, provenance):
        result = summarise(study, provenance)
        write_record(folder / "result.json", Result.model_validate(result))
    return result
