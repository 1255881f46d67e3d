"""Run an exponent study to its end: ask what is missing, run it, record it, write the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loopscale.errors import UserError
from loopscale.exponent.plan import Cell, ExponentPlan
from loopscale.exponent.result import summarise
from loopscale.exponent.study import ExponentStudy
from loopscale.records import ExponentResult, write_record
from loopscale.study import Executor, LocalProcesses, Observer, Page, Silent, provenance_of, run_asked
from loopscale.train.task import to_device
from loopscale.train.training import make_task


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
    started, observer = time.monotonic(), observer or Silent()
    runner = executor or LocalProcesses()
    description = _checked(plan, runner)  # first, so that bad data leaves no folder behind
    observer.checked(description)
    with ExponentStudy.open(folder, plan) as study:
        run_asked(study, runner, observer, page)
        result = summarise(study, provenance_of(plan.base, description, folder, started))
        write_record(folder / "result.json", result)
    return result


def _checked(plan: ExponentPlan, executor: Executor) -> dict[str, Any]:
    """Raise `UserError` when the data, or the user's model, cannot be used; return what provenance says of them."""
    if plan.user_code is None:
        executor.check_room(plan.config(plan.sample(max(plan.loops))))
        return plan.base.load_data().description
    cells = [
        Cell(loops, 1.0, plan.base.optim.lr, plan.base.optim.lr, 0) for loops in (min(plan.loops), max(plan.loops))
    ]
    said = plan.user_code.check(*map(plan.config, cells))
    refuse_deaf(plan)
    return said


def refuse_deaf(plan: ExponentPlan) -> None:
    """Raise `UserError` when the user's model gives bitwise the same loss at a different eps: no grid says anything."""
    assert plan.user_code is not None
    cells = [Cell(max(plan.loops), strength, plan.base.optim.lr, plan.base.optim.lr, 0) for strength in (1.0, 0.125)]
    tasks = [make_task(plan.config(cell).using(plan.user_code.place)) for cell in cells]
    with torch.no_grad():
        losses = [
            float(task.loss(task.network, to_device(task.batches(0), torch.device("cpu")), max(plan.loops)))
            for task in tasks
        ]
    if losses[0] == losses[1]:
        raise UserError(
            f"{plan.user_code.place} ignores its strength: the loss is {losses[0]:.6g} at strengths 1 and 1/8, so no "
            f"eps can be found: let its loop have rule and strength, or multiply its branches by residual_scale"
        )
