"""Where the trials of a tuning are kept and shared: an Optuna journal file, or a database by URL.

It is the only thing that processes and machines share. A trial's record travels in it; who runs a trial says so, and when
that process is gone the trial is given to another. Finished trials are never run again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, require
from loopscale.tune.settings import TuneSettings, bounds

BEAT, LOST = 10.0, 60.0  # seconds between signs of life, and without one until a process counts as gone


def open_storage(where: str | None, folder: Path) -> Any:
    """The journal file in the folder, another journal file, or a database ("postgresql://user@host/name").

    Raises `UserError` when it cannot be reached, and `MissingExtraError` without optuna.
    """
    optuna = require("optuna", "sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if where is not None and "://" in where:
        if where.startswith("sqlite"):
            raise UserError("SQLite breaks under concurrent starts: leave --storage out, or name a PostgreSQL server")
        return _database(optuna, where)
    path = folder / "journal.log" if where is None else Path(where)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        _check_journal(path)
        return optuna.storages.JournalStorage(backend)
    except OSError as cause:
        raise UserError(f"cannot use the storage {path} ({cause.strerror}): name another with --storage") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not an Optuna journal: name another file with --storage, or a new folder") from None


def _check_journal(path: Path) -> None:
    """Raise `ValueError` or `KeyError` unless the first line is an entry of a journal; an empty file is one."""
    with path.open("rb") as file:
        first = file.readline()
    if first:
        json.loads(first)["op_code"]


def _database(optuna: Any, url: str) -> Any:
    shown = url.split("://")[0] + "://" + url.split("@")[-1].split("://")[-1]
    try:
        return optuna.storages.RDBStorage(url)
    except ImportError as cause:
        raise UserError(f"the storage {shown} needs a driver ({cause}): pip install 'loopscale[postgres]'") from None
    except Exception as cause:
        reason = str(cause).strip().splitlines()[0][:120] if str(cause).strip() else type(cause).__name__
        raise UserError(f"cannot reach the storage {shown} ({reason}): start it, or leave --storage out") from None


class Ledger:
    """The trials of one tuning in a storage: explored points (chosen by the sampler) and repeats (given points)."""

    def __init__(self, storage: Any, settings: TuneSettings) -> None:
        self.settings = settings
        self.owner = f"{socket.gethostname()}|{os.getpid()}|{uuid.uuid4().hex[:8]}"
        optuna = require("optuna", "sweep")
        sampler = optuna.samplers.GPSampler(seed=0, n_startup_trials=5, warn_independent_sampling=False)
        self.explored = optuna.create_study(
            storage=storage, study_name=settings.name, sampler=sampler, load_if_exists=True
        )
        self.repeats = optuna.create_study(storage=storage, study_name=f"{settings.name}-repeats", load_if_exists=True)
        self._ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in bounds(settings).items()}
        self._optuna = optuna
        identity = json.loads(json.dumps(settings.to_json()))
        if self.explored.user_attrs.get("tuning", identity) != identity:
            raise UserError("the storage holds another tuning under this name: name another with --storage")
        self.explored.set_user_attr("tuning", identity)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the block runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                self.explored.set_user_attr(f"beat {self.owner}", time.time())

        self.explored.set_user_attr(f"beat {self.owner}", time.time())
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._release()

    def _release(self) -> None:
        """Give back what this process began and did not finish."""
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

    def ask_repeat(self, key: str, spec: dict[str, Any]) -> Any:
        """Claim a repeat; None when somebody has it or had it."""
        for trial in self.repeats.get_trials(deepcopy=False):
            if trial.user_attrs.get("key") == key and trial.state.name != "FAIL":
                return None
        trial = self.repeats.ask()
        for name, value in {"owner": self.owner, "key": key, **spec}.items():
            trial.set_user_attr(name, value)
        return trial

    def tell(self, trial: Any, record: dict[str, Any]) -> None:
        """Keep a record: the trial is finished, for everybody."""
        trial.set_user_attr("record", record)
        study = self.explored if trial.study is self.explored else self.repeats
        if record["loss"] is not None:
            study.tell(trial, record["loss"])
        else:
            # "Bad here": a finite number above the rest, which the sampler's model can use. Pruned trials it would ignore,
            # and ask for again.
            trial.set_user_attr("outcome", "stopped early" if record.get("stopped") else "diverged")
            study.tell(trial, self._bad())

    def _bad(self) -> float:
        known = [t.value for t in self.explored.get_trials(deepcopy=False) if t.value is not None]
        return max(known) + 0.02 if known else 20.0

    def records(self) -> dict[str, dict[str, Any]]:
        """Every finished trial's record, by key, whoever ran it."""
        return {r["key"]: r for r in (*self._records(self.explored), *self._records(self.repeats))}

    def explored_records(self) -> list[dict[str, Any]]:
        """The records of the explored points, in the order they were asked for."""
        return self._records(self.explored)

    def _records(self, study: Any) -> list[dict[str, Any]]:
        trials = study.get_trials(deepcopy=False)
        return [trial.user_attrs["record"] for trial in trials if "record" in trial.user_attrs]

    def running(self) -> int:
        """How many trials live processes, this one included, are at."""
        return len(self._claimed())

    def recover(self) -> int:
        """Free the trials of processes that are gone, and have their points explored again; returns how many."""
        beats, count = self.explored.user_attrs, 0
        for study, trial in self._claimed():
            if not self._lives(trial.user_attrs.get("owner", ""), beats):
                count += self._free(study, trial)
        return count

    def _free(self, study: Any, trial: Any) -> bool:
        try:
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
            for study in (self.explored, self.repeats)
            for trial in study.get_trials(deepcopy=False, states=running)
        ]

    def _lives(self, owner: str, beats: dict[str, Any]) -> bool:
        host, _, rest = owner.partition("|")
        process = rest.partition("|")[0]
        if host == socket.gethostname() and process.isdigit() and owner != self.owner:
            return int(process) != os.getpid() and _runs(int(process))
        return owner == self.owner or time.time() - beats.get(f"beat {owner}", 0.0) < LOST


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a dead process that nobody has asked after yet still answers to signals
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
