"""Trials as arrays of SLURM jobs through submitit, with a cap on the jobs that run at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, require
from loopscale.study.executor import Job
from loopscale.study.trial import run_trial

POLL = 0.5  # seconds between looks at the jobs
AGAIN = 3  # times that a job is submitted


class SlurmArrays:
    """One array for each batch of new trials; `cap` is the most that run at once.

    cluster: "slurm", "local" (processes of this machine, for tests) or None, whichever is there.
    minutes: the time limit of a trial. options: further submitit parameters, such as `slurm_partition`.
    A job that is lost is submitted again, up to 3 times.

    Raises `UserError` without SLURM, or when a trial is lost three times, and `MissingExtraError` without submitit.
    """

    def __init__(
        self, folder: Path, cap: int = 16, cluster: str | None = "slurm", minutes: int = 60, **options: Any
    ) -> None:
        if cap < 1:
            raise UserError(f"the cap on jobs must be at least 1, got {cap}: set --workers")
        self.folder, self.cap = folder, cap
        submitit = require("submitit", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError:
            raise UserError("there is no SLURM here (no srun): use --executor local or ray") from None
        limits = {"slurm_array_parallelism": cap, "cpus_per_task": 1} if self._executor.cluster == "slurm" else {}
        self._executor.update_parameters(timeout_min=minutes, name="loopscale", **limits, **options)

    @property
    def slots(self) -> int:
        """The cap."""
        return self.cap

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """Yield records as trials end; ask `next_jobs` again after each."""
        running: dict[str, tuple[Any, Job]] = {}
        tries: dict[str, int] = {}
        try:
            while True:
                new = [job for job in next_jobs() if job[0] not in running][: self.cap - len(running)]
                for job, submitted in zip(new, self._submit(new), strict=True):
                    running[job[0]] = (submitted, job)
                    tries[job[0]] = tries.get(job[0], 0) + 1
                if not running:
                    return
                for key in self._ended(running):
                    submitted, _ = running.pop(key)
                    record = self._result(submitted, tries[key])
                    if record is not None:
                        yield record
        finally:
            for submitted, _ in running.values():
                submitted.cancel()

    def _submit(self, jobs: list[Job]) -> list[Any]:
        if not jobs:
            return []
        keys, cells, configs = zip(*jobs, strict=True)
        submitted: list[Any] = self._executor.map_array(run_trial, keys, cells, configs)
        return submitted

    def _ended(self, running: dict[str, tuple[Any, Job]]) -> list[str]:
        while True:
            ended = [key for key, (submitted, _) in running.items() if submitted.done()]
            if ended:
                return ended
            time.sleep(POLL)

    def _result(self, submitted: Any, tried: int) -> dict[str, Any] | None:
        """The record; None for a job that was lost and is submitted again."""
        error = submitted.exception()
        if error is None:
            record: dict[str, Any] = submitted.result()
            return record
        if tried < AGAIN:
            return None
        raise UserError(f"a trial was lost {AGAIN} times, see {self.folder}: {str(error).splitlines()[-1][:160]}")
