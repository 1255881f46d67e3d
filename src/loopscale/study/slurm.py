"""Run trials as arrays of SLURM jobs through submitit, with a cap on the jobs that run at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

from loopscale.errors import UserError, first_line, require
from loopscale.study.executor import AGAIN, Executor

POLL = 0.5  # seconds between looks at the jobs


class LostJobError(RuntimeError):
    """A SLURM job ended without a result: its node died, its time was over, or the work raised."""


class SlurmArrays(Executor):
    """What is submitted within half a second becomes one array.

    cap: the most jobs at once. cluster: "slurm", or "local" (processes of this machine, for tests).
    options: `time` of a trial in minutes (60), and any of SLURM's, such as `partition` and `gres`.

    Raises `UserError` without SLURM or for an option it does not know, `MissingExtraError` without submitit.
    """

    lost = (LostJobError,)
    here = False

    def __init__(self, folder: Path, cap: int = 16, cluster: str | None = "slurm", **options: Any) -> None:
        if cap < 1:
            raise UserError(f"the cap on jobs must be at least 1, got {cap}: set --workers")
        self.slots, self._folder = cap, folder
        submitit = _submitit()
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError:
            raise UserError("there is no SLURM here (no srun): use --executor local or ray") from None
        minutes = int(options.pop("time", 60))
        limits = {"array_parallelism": cap, **options} if self._executor.cluster == "slurm" else {}
        named = {f"slurm_{name.replace('-', '_')}": value for name, value in limits.items()}
        try:
            self._executor.update_parameters(timeout_min=minutes, name="loopscale", cpus_per_task=1, **named)
        except (NameError, TypeError, ValueError) as cause:
            raise UserError(f"--slurm: {first_line(cause)}: name options of sbatch") from None
        self._new: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self._jobs: dict[Future[Any], Any] = {}
        self._over: threading.Event | None = None

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have it submitted with the next array."""
        future: Future[Any] = Future()
        self._new.append((future, work, arguments))
        if self._over is None:
            self._over = threading.Event()
            threading.Thread(target=self._watch, args=(self._over,), daemon=True).start()
        return future

    def advise(self, cause: BaseException) -> str:
        """Name the folder of the logs."""
        return f"a trial was lost {AGAIN} times, see {self._folder}: {cause}"

    def close(self, unfinished: bool) -> None:
        """Cancel what is running."""
        if self._over is not None:
            self._over.set()
            self._over = None
        for job in list(self._jobs.values()):
            job.cancel()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(POLL):
            try:
                new, self._new = self._new, []
                if new:
                    futures, works, arguments = zip(*new, strict=True)
                    submitted = self._executor.map_array(_call, works, arguments)
                    self._jobs.update(zip(futures, submitted, strict=True))
                for future, job in list(self._jobs.items()):
                    if job.done():
                        del self._jobs[future]
                        _settle(future, job)
            except Exception as cause:  # of sbatch or of the shared folder: whoever waits is told
                for future in [one for one, *_ in new if one not in self._jobs] + list(self._jobs):
                    future.set_exception(cause)
                self._jobs.clear()


def _submitit() -> ModuleType:
    """Import it without its own logging, which would close every handler of this process; its jobs log as ever."""
    if "SUBMITIT_LOG_LEVEL" in os.environ:
        return require("submitit", "slurm")
    os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"
    try:
        return require("submitit", "slurm")
    finally:
        del os.environ["SUBMITIT_LOG_LEVEL"]


def _call(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return work(*arguments)


def _settle(future: Future[Any], job: Any) -> None:
    error = job.exception()
    if error is None:
        future.set_result(job.result())
    else:
        future.set_exception(LostJobError(str(error).splitlines()[-1][:160]))
