"""Run an exponent study to its end: ask what is missing, run it, record it, write the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from loopscale.exponent.plan import ExponentPlan
from loopscale.exponent.result import TARGET, summarise, target_config
from loopscale.exponent.study import ExponentStudy
from loopscale.files import write_text
from loopscale.records import ExponentResult, write_record
from loopscale.study import Executor, Observer, Page


def run_exponent(
    plan: ExponentPlan,
    folder: Path,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
    page: Callable[[ExponentStudy], Page] | None = None,
) -> ExponentResult:
    """Run or continue the study in `folder` and write `result.json`; return its content.

    Stop it anywhere and call it again, with more loops, seeds, fresh seeds or ways to carry if you like: finished trials
    are read from disk. `page` makes the picture of the running study, such as `loopscale.report.ExponentPage`.

    Raises `UserError` for a folder of something else or one that a different process drives, bad data, a model that
    ignores `residual_scale`, workers that keep dying, or when every trial raises.
    """
    with ExponentStudy.run(folder, plan, executor, observer, page) as (study, provenance):
        result = summarise(study, provenance)
        write_record(folder / "result.json", result)
        if result.target is not None and result.outer is not None:
            write_text(folder / TARGET, target_config(plan, result.target, result.outer.rate).to_toml())
    return result
