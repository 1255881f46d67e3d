"""What a study asks, whatever it measures: the design of its trials, which is the identity of its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from loopscale.records import Record
from loopscale.study.executor import Executor
from loopscale.study.trial import config_of
from loopscale.study.user_code import UserCode
from loopscale.train import TrainConfig
from loopscale.train.load import stored_config


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
