"""Run a study to its end: ask what is missing, run it, record it, judge it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopscale.files import clear_left_aside, write_json
from loopscale.study.claims import Claims
from loopscale.study.executor import Executor, Job, LocalProcesses
from loopscale.transfer.plan import Arm, Cell, StudyPlan
from loopscale.transfer.result import summarise
from loopscale.transfer.study import Study

Observer = Callable[[dict[str, Any], int, int], None]
OnChecked = Callable[[dict[str, Any]], None]


def run_study(
    plan: StudyPlan,
    folder: Path,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
    on_checked: OnChecked = lambda description: None,
) -> dict[str, Any]:
    """Run or continue the study in `folder` and write `result.json`; returns its content.

    `observer(trial, finished, missing_now)` is called after each trial, `on_checked(description)` before the first, with
    what provenance says of the data, or of a model of the user's own (its `warnings` too). Stop it anywhere and call it
    again: finished trials are read from disk. Several processes, or machines that share the folder, may run one study at
    once.

    Raises `UserError` for a folder of another study, bad data, or workers that keep dying.
    """
    started = time.monotonic()
    # First, so that bad data leaves no folder behind; packed once here, so that the workers find it in the cache.
    description = _checked(plan)
    on_checked(description)
    study = Study.open(folder, plan)
    for place in (folder, folder / "trials"):
        clear_left_aside(place)
    _finish(study, executor or LocalProcesses(), observer)
    study.check_errors()
    result = summarise(study, _provenance(plan, description, time.monotonic() - started + _before(folder)))
    write_json(folder / "result.json", result)
    return result


def _checked(plan: StudyPlan) -> dict[str, Any]:
    """Raises `UserError` when the data, or the user's own model, cannot be used."""
    if plan.own is None:
        return plan.base.load_data().description
    size = plan.base.model
    here = Cell(Arm(size.rule, size.strength, size.loops), plan.center_lr, plan.base.train.seed)
    there = Cell(Arm(size.rule, size.strength, max(plan.loops)), plan.center_lr, 0)
    return plan.own.check(plan.config(here), plan.config(there))


def _finish(study: Study, executor: Executor, observer: Observer | None) -> None:
    """Run what is missing, together with whoever else is at this study."""
    plan, claims, mine = study.plan, Claims(study.folder), dict[str, Job]()

    def give_back(key: str) -> None:
        mine.pop(key, None)
        claims.release(key)

    def next_jobs() -> list[Job]:
        study.load_trials()
        for key in mine.keys() & study.trials.keys():  # taken over by another, as this process was silent for long
            give_back(key)
        for cell in study.missing():
            if mine and len(mine) >= executor.slots:
                break
            key = plan.key(cell)
            if key not in mine and claims.take(key):
                said = {**asdict(cell.arm), "lr": cell.lr, "seed": cell.seed}
                mine[key] = (key, said, plan.job_config(cell))
        return list(mine.values())

    with claims.alive():
        while True:
            for trial in executor.run(next_jobs):
                study.record(trial)
                give_back(trial["key"])
                if observer is not None:
                    observer(trial, len(study.trials), len(study.missing()))
            study.load_trials()
            if not study.missing():
                return
            time.sleep(0.5)  # others are at the last ones


def _before(folder: Path) -> float:
    """Seconds that an earlier, finished call spent on this study."""
    try:
        return float(json.loads((folder / "result.json").read_text())["provenance"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _provenance(plan: StudyPlan, description: dict[str, Any], seconds: float) -> dict[str, Any]:
    from loopscale.train import provenance

    base = plan.base.model_dump(mode="json")
    return {
        **provenance(),
        "data": description,
        "model": base["model"],
        "optim": base["optim"],
        "train": base["train"],
        "seconds": round(seconds, 1),
    }
