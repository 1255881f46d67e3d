"""What a study asks, whatever it measures: its design, the identity of its folder, and the precision of all trials."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from loopscale.records import Record
from loopscale.study.executor import Executor
from loopscale.study.trial import config_of, sections
from loopscale.study.user_code import UserCode
from loopscale.train import TrainConfig
from loopscale.train.load import stored_config
from loopscale.train.precision import settled
from loopscale.train.training import make_task


class Design(ABC):
    """A frozen dataclass with `base`, the config that the trials share, `user_code`, and the fields of its record."""

    RECORD: ClassVar[type[Record]]
    FILE: ClassVar[str]  # of the study's folder, which holds the record
    base: TrainConfig
    user_code: UserCode | None

    @abstractmethod
    def typical_job(self) -> dict[str, Any]:
        """Return the job of a large trial, by which precision and executor are chosen."""

    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """Return what decides the result of a cell besides the cell: if it changes, the trials mean something else."""

    @abstractmethod
    def ends(self) -> tuple[TrainConfig, TrainConfig]:
        """Return the config at which a user's model is tried, and the largest one that its values are carried to."""

    def by_strength(self) -> tuple[TrainConfig, TrainConfig] | None:
        """Return two configs of different strength, which a user's model must tell apart; None where no scale is asked."""
        return None

    def to_record(self) -> Any:
        """Return what `FILE` holds."""
        values = {name: getattr(self, name) for name in self._fields()}
        values["base"] = self.base.model_dump(mode="json")
        values["user_code"] = None if self.user_code is None else self.user_code.to_json()
        return self.RECORD(**values)

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Reverse `to_record`; raises `UserError` for a record that makes no study."""
        values = {name: getattr(record, name) for name in cls._fields()}
        values["base"] = stored_config(record.base, cls.FILE, cls.RECORD.FIX)
        values["user_code"] = UserCode.from_json(record.user_code)
        return cls(**values)

    @classmethod
    def _fields(cls) -> set[str]:
        return set(cls.RECORD.model_fields) - {"base", "user_code"}

    def check(self, executor: Executor) -> dict[str, Any]:
        """Look at data and model before a folder is made; return what provenance says of them.

        The data are packed here, once, so that the workers find them in the cache. Raises `UserError` when the data or the
        user's model cannot be used, or a trial is too large for this machine.
        """
        near, far = self.ends()
        if self.user_code is not None:
            said, pair = self.user_code.check(near, far), self.by_strength()
            if pair is not None:
                self.user_code.refuse_deaf(*pair)
            return said
        executor.check_room(config_of(self.typical_job()))
        return near.load_data().description


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
