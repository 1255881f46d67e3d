"""Groups of jobs in processes of this machine, one thread each; what a dead process had is run again."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from loopscale.errors import UserError
from loopscale.study.trial import start_worker

Job = tuple[str, dict[str, Any], dict[str, Any]]  # key, cell, config
Take = Callable[[list[Job], set[str]], list[Job]]
T = TypeVar("T")
GUARD = '`if __name__ == "__main__":`'


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    workers: int, next_jobs: Callable[[], list[Job]], take: Take, work: Callable[[list[Job]], T]
) -> Iterator[tuple[list[Job], T]]:
    """Yield (group, what `work` made of it) as groups end; `next_jobs` is asked again after each.

    take: of the jobs known now and the keys that are running, the group that a free process gets; none waits.

    Raises `UserError` when processes die again and again (three times without a finished group in between), and in a
    process that is just importing the script that started it: it would start processes of its own, or wait for its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(f"a script starts trials where their processes import it: put that under {GUARD}")
    losses = 0
    while True:
        try:
            for ended in _pool(workers, next_jobs, take, work):
                losses = 0
                yield ended
            return
        except BrokenProcessPool as cause:
            losses += 1
            if losses == 3:
                raise UserError(
                    "worker processes keep dying: out of memory (try --workers 1 or a smaller model), or a script "
                    f"that they import and that starts them outside {GUARD}"
                ) from cause


def spawned(workers: int, together: bool = False) -> ProcessPoolExecutor:
    """A pool of processes with one thread each; `together`: none begins before all have started."""
    # The environment is inherited by spawned workers before they import torch; initializers would come too late.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(workers) if together else None
    return ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(meeting,))


def _pool(
    workers: int, next_jobs: Callable[[], list[Job]], take: Take, work: Callable[[list[Job]], T]
) -> Iterator[tuple[list[Job], T]]:
    pool = spawned(workers)
    running: dict[Future[T], list[Job]] = {}
    try:
        while True:
            jobs, active = next_jobs(), {job[0] for group in running.values() for job in group}
            while len(running) < workers and (group := take(jobs, active)):
                running[pool.submit(work, group)] = group
                active |= {job[0] for job in group}
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    finally:
        _stop(pool, bool(running))


def _stop(pool: ProcessPoolExecutor, unfinished: bool) -> None:
    """End the workers at once when trials are still running: their work is asked for again next time."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=not unfinished, cancel_futures=True)
    if unfinished:
        for process in processes:
            process.terminate()
