"""The trials of one tuning in a storage: who is at which, what ended; a dead process's trials go to another."""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from loopscale.errors import UserError, require
from loopscale.study.owner import LOST, beating, gone, new_owner
from loopscale.tune.settings import TuneSettings, bounds


class Ledger:
    """Explored points (chosen by the sampler), repeats and checks (given points). Finished trials never run again.

    A trial's record travels in the storage, which is all that processes and machines share. Who runs a trial says so, and
    when that process is gone the trial is given to another.
    """

    def __init__(self, storage: Any, settings: TuneSettings) -> None:
        self.settings = settings
        self.owner = new_owner()
        self._optuna = optuna = require("optuna", "sweep")
        # Said among the trials, and nothing to act on: the search is as good, a suggestion takes a little longer.
        logging.getLogger("optuna._gp.batched_lbfgsb").addFilter(_not_greenlet)

        def study(suffix: str) -> Any:
            return optuna.create_study(storage=storage, study_name=f"{settings.name}{suffix}", load_if_exists=True)

        self.explored, self.repeats, self.checks = study(""), study("-repeats"), study("-checks")
        self._ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in bounds(settings).items()}
        identity = json.loads(json.dumps(settings.to_json()))
        if self.explored.user_attrs.get("tuning", identity) != identity:
            raise UserError("the storage holds another tuning under this name: name another with --storage")
        self.explored.set_user_attr("tuning", identity)
        self.explored.sampler = optuna.samplers.GPSampler(
            seed=self._seed(), n_startup_trials=5, warn_independent_sampling=False
        )

    def _seed(self) -> int:
        """0 for one process from the start; another that joins, or goes on, must not ask for the same points."""
        return zlib.crc32(self.owner.encode()) if self._others() else len(self.explored.get_trials(deepcopy=False))

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the block runs; afterwards give back what was begun and did not end."""
        self._beat()
        try:
            with beating(self._beat):
                yield
        finally:
            with suppress(Exception):  # the block's own failure is the one to be seen
                self._release()

    def _beat(self) -> None:
        self.explored.set_user_attr(f"beat {self.owner}", time.time())

    def _release(self) -> None:
        for study, trial in self._claimed():
            if trial.user_attrs.get("owner") == self.owner:
                self._free(study, trial)

    def ask(self) -> tuple[Any, dict[str, float]]:
        """A new point to explore, claimed by this process."""
        trial = self.explored.ask(self._ranges)
        trial.set_user_attr("owner", self.owner)
        return trial, dict(trial.params)

    def enqueue(self, point: dict[str, float]) -> None:
        """Have this point explored first."""
        self.explored.enqueue_trial(point, skip_if_exists=True)

    def claim(self, study: Any, key: str, **said: Any) -> Any:
        """Claim the trial `key` among the repeats or checks; None when somebody has it or had it."""
        if self._holders(study, key):
            return None
        trial = study.ask()
        for name, value in {"owner": self.owner, "key": key, **said}.items():
            trial.set_user_attr(name, value)
        if min(self._holders(study, key)) < trial.number:  # somebody asked at the same moment, and was first
            study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            return None
        return trial

    def _holders(self, study: Any, key: str) -> list[int]:
        trials = study.get_trials(deepcopy=False)
        return [t.number for t in trials if t.user_attrs.get("key") == key and t.state.name != "FAIL"]

    def tell(self, trial: Any, record: dict[str, Any]) -> None:
        """Keep a record: the trial is finished, for everybody."""
        try:
            trial.set_user_attr("record", record)
            if record["loss"] is None:
                trial.set_user_attr("outcome", "stopped early" if record.get("stopped") else "diverged")
            self._finish(trial.study, trial, record)
        except (ValueError, RuntimeError):
            # This process was silent for so long that another took the trial over. Its result will be the same.
            return

    def _finish(self, study: Any, trial: Any, record: dict[str, Any]) -> None:
        number = getattr(trial, "number", trial)
        if record["loss"] is not None:
            study.tell(number, record["loss"])
        else:
            # "Bad here": a finite number above the rest, which the sampler's model can use. Pruned trials it would ignore,
            # and ask for again.
            study.tell(number, self._bad())

    def _bad(self) -> float:
        known = [t.value for t in self.explored.get_trials(deepcopy=False) if t.value is not None]
        return max(known) + 0.02 if known else 20.0

    def records(self) -> dict[str, dict[str, Any]]:
        """Every finished trial's record, by key, whoever ran it; checks are not among them."""
        return {r["key"]: r for r in (*self._records(self.explored), *self._records(self.repeats))}

    def check_records(self) -> dict[str, dict[str, Any]]:
        """The records of finished checks, by key."""
        return {record["key"]: record for record in self._records(self.checks)}

    def explored_records(self) -> list[dict[str, Any]]:
        """The records of the explored points, in the order they were asked for."""
        return self._records(self.explored)

    def _records(self, study: Any) -> list[dict[str, Any]]:
        trials = study.get_trials(deepcopy=False)
        return [trial.user_attrs["record"] for trial in trials if "record" in trial.user_attrs]

    def running(self, *studies: Any) -> int:
        """How many trials of these studies processes, this one included, are at."""
        return sum(any(study is one for one in studies) for study, _ in self._claimed())

    def recover(self) -> int:
        """Free the trials of processes that are gone, and have their points explored again; returns how many."""
        count = 0
        for study, trial in self._claimed():
            if not self._held(trial):
                count += self._free(study, trial)
        return count

    def _free(self, study: Any, trial: Any) -> bool:
        record = trial.user_attrs.get("record")
        try:
            if record is not None:  # its process died between the record and the end
                self._finish(study, trial, record)
                return False
            study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        except (ValueError, RuntimeError):  # somebody else was faster
            return False
        if study is self.explored and trial.params:
            study.enqueue_trial(trial.params)
        return True

    def _claimed(self) -> list[tuple[Any, Any]]:
        running = (self._optuna.trial.TrialState.RUNNING,)
        return [
            (study, trial)
            for study in (self.explored, self.repeats, self.checks)
            for trial in study.get_trials(deepcopy=False, states=running)
        ]

    def _held(self, trial: Any) -> bool:
        owner = trial.user_attrs.get("owner")
        if owner is not None:
            return self._lives(owner)
        # Asked for a moment ago, and its owner signs it next; unless that died in between.
        return self._others() and time.time() - float(trial.datetime_start.timestamp()) < LOST

    def _others(self) -> bool:
        """Whether another process is at this tuning."""
        owners = [name.removeprefix("beat ") for name in self.explored.user_attrs if name.startswith("beat ")]
        return any(self._lives(owner) for owner in owners if owner != self.owner)

    def _lives(self, owner: str) -> bool:
        """Whether a process gave a sign of life lately and, on this machine, still runs."""
        if owner == self.owner:
            return True
        if gone(owner):
            return False
        return time.time() - float(self.explored.user_attrs.get(f"beat {owner}", 0.0)) < LOST


def _not_greenlet(record: logging.LogRecord) -> bool:
    return "'greenlet' package is unavailable" not in record.getMessage()
