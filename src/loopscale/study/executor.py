"""Drive trials: keep the places of an executor filled with jobs, and hand each record on as it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from loopscale.errors import UserError
from loopscale.study.trial import run_trial

if TYPE_CHECKING:
    from loopscale.train import TrainConfig

Job = tuple[str, dict[str, Any], dict[str, Any]]  # key, cell, config
AGAIN = 3  # times that a job is run when its worker is lost


class Executor:
    """Where work runs. A new executor says `slots` and `submit`; the rest has defaults.

    slots: how many submissions run at once.
    batch: how many jobs one submission takes at most; `pack` chooses them.
    lost: the exceptions that mean "the worker died", after which the job runs again.
    here: whether the work runs on this machine.
    """

    slots: int = 1
    batch: int = 1
    lost: tuple[type[BaseException], ...] = ()
    here: bool = True

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `work(*arguments)` in a worker, soon; the future gives what it returns or raises."""
        raise NotImplementedError

    def close(self, unfinished: bool) -> None:
        """End the workers; `unfinished` says that work is still running there, which nobody waits for."""

    def advise(self, cause: BaseException) -> str:
        """Say what to do when workers are lost again and again."""
        return f"a worker was lost {AGAIN} times ({cause})"

    def pack(self, waiting: list[Job], running: list[Job]) -> list[Job]:
        """Choose the jobs that are submitted together next."""
        return waiting[:1]

    def check_room(self, config: TrainConfig) -> None:
        """Raise `UserError`, before a study begins, when a training of the house model is too large for this machine."""
        if self.here:
            from loopscale.train.needs import check_memory

            check_memory(config)

    def start(self, jobs: list[Job]) -> Future[Any]:
        """Submit what `pack` chose."""
        return self.submit(run_trial, *jobs[0])

    def records(self, jobs: list[Job], found: Any) -> list[dict[str, Any]]:
        """Turn what a future of `start` gave into records; a job without one runs again."""
        return [found]


class InThisProcess(Executor):
    """Runs each job at once in this process: for a debugger, and for objectives that take no time."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it now."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as cause:
            future.set_exception(cause)
        return future


def drive(executor: Executor, next_job: Callable[[], Job | None], keep: Callable[[dict[str, Any]], None]) -> None:
    """Run jobs until `next_job` has none and none is running; `keep` gets each record once.

    `next_job()` gives the next job, or None when there is none before a running one has ended.

    Raises what a job raises, and `UserError` when a job's worker is lost three times.
    """
    waiting: deque[Job] = deque()
    running: dict[Future[Any], list[Job]] = {}
    losses: dict[str, int] = {}
    first = next_job()
    if first is None:
        return  # before any worker is started
    waiting.append(first)
    try:
        while True:
            _fill(executor, next_job, waiting, running)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                jobs = running.pop(future)
                try:
                    records = executor.records(jobs, future.result())
                except executor.lost as cause:
                    records = []
                    _count(jobs, losses, executor, cause)
                for record in records:
                    keep(record)
                ended = {record["key"] for record in records}
                waiting.extendleft(job for job in reversed(jobs) if job[0] not in ended)
    finally:
        executor.close(unfinished=bool(running))


def _fill(
    executor: Executor,
    next_job: Callable[[], Job | None],
    waiting: deque[Job],
    running: dict[Future[Any], list[Job]],
) -> None:
    while (room := executor.slots - len(running)) > 0:
        while len(waiting) < room * executor.batch and (job := next_job()) is not None:
            waiting.append(job)
        if not waiting:
            return
        jobs = executor.pack(list(waiting), [job for group in running.values() for job in group])
        for job in jobs:
            waiting.remove(job)
        running[executor.start(jobs)] = jobs


def _count(jobs: list[Job], losses: dict[str, int], executor: Executor, cause: BaseException) -> None:
    for key, _, _ in jobs:
        losses[key] = losses.get(key, 0) + 1
        if losses[key] == AGAIN:
            raise UserError(executor.advise(cause)) from cause


def checked(workers: int | None, default: int) -> int:
    """Return the number of workers; raises `UserError` below 1."""
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    return workers or default
