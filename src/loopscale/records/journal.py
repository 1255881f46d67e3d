"""Keep the finished trials of a folder: one line each in an append-only file, on disk before anything else is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

from loopscale.errors import UserError
from loopscale.files import no_link, writing
from loopscale.records.record import parse_json, parse_record, read_record, sealed
from loopscale.records.study import Trial


class Journal:
    """The trials in `FOLDER/NAME.jsonl`, by key, read once; `read` again reads only what was appended since.

    A last line without its end was left by a writer that was killed: it counts as not written, and the next `append`
    overwrites it. Folders of earlier versions hold a file per trial, `NAME/KEY.json`: they are read too.

    Raises `UserError` that names the file and line of a damaged record.
    """

    def __init__(self, folder: Path, name: str = "trials") -> None:
        self.path = folder / f"{name}.jsonl"
        self.trials: dict[str, Trial] = {}
        self._end, self._lines = 0, 0
        for path in sorted((folder / name).glob("[!.]*.json")):
            self._keep(read_record(path, Trial), str(path), path.stem)
        self.read()

    def by_key(self) -> tuple[Trial, ...]:
        """Return all trials in the order of their keys, which does not depend on which ended first."""
        return tuple(self.trials[key] for key in sorted(self.trials))

    def check_count(self, told: object, fix: str) -> None:
        """Raise `UserError` when there are fewer trials than a result was made of: it would no longer be the same page."""
        if isinstance(told, int) and len(self.trials) < told:
            raise UserError(f"{self.path} holds {len(self.trials)} of the {told} trials of the result: {fix}")

    def read(self) -> list[Trial]:
        """Read the trials that were appended since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._end)
                found = file.read()
        except FileNotFoundError:
            return []
        except OSError as cause:
            raise UserError(f"cannot read {self.path} ({cause.strerror})") from cause
        lines = found[: found.rfind(b"\n") + 1].splitlines(keepends=True)
        return [self._parse(line) for line in lines]

    def append(self, trial: Trial) -> None:
        """Write a trial to disk, once unless it was stopped; raises `UserError`, the journal unchanged, on failure."""
        if not self._new(trial):
            return
        line = json.dumps(sealed(trial), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with writing(self.path), open(self.path, "r+b" if self.path.exists() else "wb", opener=no_link) as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._end, self._lines = self._end + len(line), self._lines + 1
        self.trials[trial.key] = trial

    def _parse(self, line: bytes) -> Trial:
        name = f"{self.path} line {self._lines + 1}"
        try:
            text = line.decode()
        except UnicodeDecodeError as cause:
            raise UserError(f"{name} is damaged (not UTF-8 text): {Trial.FIX}") from cause
        trial = self._keep(parse_record(parse_json(text, name, Trial.FIX), Trial, name), name)
        self._end, self._lines = self._end + len(line), self._lines + 1
        return trial

    def _keep(self, trial: Trial, name: str, key: str | None = None) -> Trial:
        if not trial.key or trial.key != (key or trial.key):
            raise UserError(f"{name} is damaged at key (it is that of a different trial): {Trial.FIX}")
        if self._new(trial):
            self.trials[trial.key] = trial
        return self.trials[trial.key]

    def _new(self, trial: Trial) -> bool:
        """Say whether a trial adds something: it is the first of its key, or goes to the end where that one was stopped."""
        return trial.key not in self.trials or (self.trials[trial.key].stopped and not trial.stopped)
