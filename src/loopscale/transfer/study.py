"""The study folder: opened or continued, every finished trial on disk, nothing lost or redone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from loopscale.errors import UserError
from loopscale.files import write_json, write_new_json
from loopscale.transfer.optimum import Losses, best_rate
from loopscale.transfer.plan import Arm, Cell, StudyPlan
from loopscale.transfer.search import wanted


class Study:
    """A plan and its trials in a folder. `Study.open` continues the folder when it holds the same plan.

    Raises `UserError` when the folder holds another study, something else, or a damaged record.
    """

    def __init__(self, folder: Path, plan: StudyPlan) -> None:
        self.folder, self.plan = folder, plan
        self.trials: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, folder: Path, plan: StudyPlan) -> Study:
        """Create the folder, or continue it."""
        path = folder / "study.json"
        if not path.exists():
            if folder.exists() and (not folder.is_dir() or any(not _begun(inside) for inside in folder.iterdir())):
                raise UserError(f"{folder} exists and is not a study: name an empty or new folder with --out")
            write_new_json(path, plan.to_json())
        if _read(path) != plan.to_json():
            raise UserError(f"{folder} holds another study: give this one its own --out, or delete that folder")
        study = cls(folder, plan)
        study.load_trials()
        return study

    @classmethod
    def load(cls, folder: Path) -> Study:
        """A study as it lies on disk, finished or not."""
        path = folder / "study.json"
        if not path.exists():
            raise UserError(f"{folder} is not a study folder: it has no study.json")
        try:
            plan = StudyPlan.from_json(_read(path))
        except (KeyError, TypeError) as cause:
            raise UserError(f"{path} is not a plan of this version ({cause}): run the study again") from cause
        study = cls(folder, plan)
        study.load_trials()
        return study

    def load_trials(self) -> None:
        """Read the finished trials from disk that are not known yet: another process may have run them."""
        for path in sorted((self.folder / "trials").glob("*.json")):
            if path.stem in self.trials:
                continue
            record = _read(path)
            if record.get("key") != path.stem or "diverged" not in record:
                raise UserError(f"{path} is damaged: delete it, and the study runs that trial again")
            self.trials[path.stem] = record

    def record(self, trial: dict[str, Any]) -> None:
        """Keep a finished trial, on disk first; once."""
        path = self.folder / "trials" / f"{trial['key']}.json"
        if not path.exists():
            write_json(path, trial)
        self.trials[trial["key"]] = trial

    def errors(self) -> list[str]:
        """What the trials raised in which the user's own code failed; they count as diverged."""
        return [trial["error"] for _, trial in sorted(self.trials.items()) if "error" in trial]

    def check_errors(self) -> None:
        """Raise `UserError` when every trial raised: then there is nothing to judge."""
        errors = self.errors()
        if errors and len(errors) == len(self.trials):
            raise UserError(f"all {len(errors)} trials raised, the first {errors[0]}: mend it and run the study again")

    def losses(self, arm: Arm) -> Losses:
        """(rate, seed) -> validation loss of an arm, inf for diverged trials."""
        shared = self.plan.same_network(arm)
        found = {}
        for trial in self.trials.values():
            cell = trial["cell"]
            if (cell["rule"], cell["strength"], cell["loops"]) == (shared.rule, shared.strength, shared.loops):
                found[cell["lr"], cell["seed"]] = math.inf if trial["diverged"] else trial["loss"]
        return found

    def missing(self) -> list[Cell]:
        """The cells to run next: what each arm needs, then the one-shot trials at the rate tuned at the smallest N."""
        cells: dict[str, Cell] = {}
        for arm in self.plan.arms:
            shared = self.plan.same_network(arm)
            asked = wanted(self.losses(arm), self.plan.seeds_at(arm.loops), self.plan.center_lr, self.plan.lrs)
            for rate, seed in asked or self._one_shot(arm):
                cell = Cell(shared, rate, seed)
                cells.setdefault(self.plan.key(cell), cell)
        return list(cells.values())

    def tuned_rate(self, arm: Arm) -> float | None:
        """The best rate on the grid at the smallest N of this arm's rule and strength; None until that arm is complete."""
        base = Arm(arm.rule, arm.strength, min(self.plan.loops))
        known = self.losses(base)
        if not known or wanted(known, self.plan.seeds_at(base.loops), self.plan.center_lr, self.plan.lrs):
            return None
        return best_rate(known)

    def _one_shot(self, arm: Arm) -> list[tuple[float, int]]:
        rate = self.tuned_rate(arm)
        if rate is None or self.plan.lrs is not None:
            return []
        known = self.losses(arm)
        return [(rate, seed) for seed in range(self.plan.seeds_at(arm.loops)) if (rate, seed) not in known]


def _begun(path: Path) -> bool:
    """Whether this is the plan that another process is writing just now."""
    return path.name.startswith((".study.json.", "study.json"))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise UserError(f"{path} is damaged ({cause}): delete it and run the study again") from cause
