"""The numbers behind a tuning's page, read from its folder and checked: the plan, the trials, what verification found."""

from __future__ import annotations

from pathlib import Path

from loopscale.errors import UserError
from loopscale.records import Journal, Plan, Record, Trial, read_record


class TuneInfo(Record):
    """A tuning as read."""

    name: str
    plan: Plan
    trials: tuple[Trial, ...]


def tune_info(folder: Path) -> TuneInfo:
    """Read plan.json and trials/ of a tuning.

    Raises `UserError` when the folder holds none, or it is unfinished or damaged.
    """
    path = folder / "plan.json"
    if not (folder / "tune.json").exists():
        raise UserError(f"{folder} holds no tune.json: give the folder that `loopscale tune` wrote")
    if not path.exists():
        raise UserError(
            f"the tuning in {folder} has no plan yet: run `loopscale tune` again to finish it, or watch it with --serve"
        )
    plan, journal = read_record(path, Plan), Journal(folder)
    journal.check_count(plan.provenance.get("trials"), Plan.FIX)
    return TuneInfo(name=folder.resolve().name, plan=plan, trials=journal.by_key())
