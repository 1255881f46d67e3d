"""One precision for all trials of a study: what its folder has, else the faster one at the study's largest trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from loopscale.study.design import Design
from loopscale.study.trial import config_of, sections
from loopscale.train.precision import settled
from loopscale.train.training import make_task

P = TypeVar("P", bound=Design)


def with_precision(plan: P, asked: str, record: Path, say: Callable[[str], object]) -> P:
    """Give the plan in one precision: `asked`, or, for "auto", by a few steps of its `typical_job`.

    record: the file in the study's folder that holds the plan, so that a study goes on in the precision of its trials.
    say: called with a sentence where steps were timed. An objective trains as it likes, and keeps fp32 in its config.

    Raises `UserError` when the job's data or model cannot be used.
    """
    if asked != "auto":
        return plan
    job = plan.typical_job()
    code = sections(job)[0]
    chosen = _recorded(record)
    if chosen is None and (code is None or code.kind == "model"):
        task = settled(make_task(config_of(job).replaced("train", precision="auto")))
        origin, size = task.origin["precision"], task.config.model
        chosen = origin["chosen"]
        if "step_seconds" in origin:
            where = f"at N = {size.loops}, L = {size.layers}, d = {size.width}"
            say(f"precision {chosen} for all trials: {origin['why']} {where}")
    return replace(plan, base=plan.base.replaced("train", precision=chosen or "fp32"))  # type: ignore[type-var]


def _recorded(record: Path) -> str | None:
    """Return the precision of a folder's plan; None where there is none yet, or a damaged one, which its reader says."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))["base"]["train"]["precision"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if found in ("fp32", "bf16") else None
