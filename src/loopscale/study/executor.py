"""Run trials side by side: one process per core, one thread each; a lost worker's trials run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from loopscale.errors import UserError
from loopscale.study.pool import Job as Job
from loopscale.study.pool import cores, in_processes
from loopscale.study.trial import run_trial


class Executor(Protocol):
    """Whatever runs jobs: `run(next_jobs)` yields records as they end. `slots`: how many run at once."""

    @property
    def slots(self) -> int:
        """How many jobs run at once."""
        ...

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """`next_jobs()` gives the jobs known now, running ones included; it is asked again after each record."""
        ...


def lanes(executor: Executor) -> int:
    """How many seconds of trials pass in a second: the slots, or the processes where several trials share one."""
    found: int = getattr(executor, "lanes", None) or executor.slots
    return found


class LocalProcesses:
    """Processes on this machine. `workers` defaults to the cores this process may use.

    Raises `UserError` when workers die again and again (three times without a finished trial in between).
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = checked(workers, cores())

    @property
    def slots(self) -> int:
        """One job a worker."""
        return self.workers

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """Yield records as trials end; ask `next_jobs` again after each."""
        for _, record in in_processes(self.workers, next_jobs, _first, _alone):
            yield record


def checked(workers: int | None, default: int) -> int:
    """The number of workers; raises `UserError` below 1."""
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    return workers or default


def _first(jobs: list[Job], running: set[str]) -> list[Job]:
    return next(([job] for job in jobs if job[0] not in running), [])


def _alone(jobs: list[Job]) -> dict[str, Any]:
    return run_trial(*jobs[0])
