"""Run trials side by side: one process per core, one thread each; a lost worker's trials run again."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from loopscale.errors import UserError
from loopscale.transfer.trial import run_trial, start_worker

Job = tuple[str, dict[str, Any], dict[str, Any]]  # key, cell, config


class Executor(Protocol):
    """Whatever runs jobs: `run(next_jobs)` yields records as they end. `slots`: how many run at once."""

    @property
    def slots(self) -> int:
        """How many jobs run at once."""
        ...

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """`next_jobs()` gives the jobs known now, running ones included; it is asked again after each record."""
        ...


class LocalProcesses:
    """Processes on this machine. `workers` defaults to the cores this process may use.

    Raises `UserError` when workers die again and again (three times without a finished trial in between).
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        )
        if self.workers < 1:
            raise UserError(f"workers must be at least 1, got {workers}")

    @property
    def slots(self) -> int:
        """One job a worker."""
        return self.workers

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """Yield records as trials end; ask `next_jobs` again after each."""
        losses = 0
        while True:
            try:
                for record in self._pool(next_jobs):
                    losses = 0
                    yield record
                return
            except BrokenProcessPool as cause:
                losses += 1
                if losses == 3:
                    raise UserError(
                        "worker processes keep dying (out of memory?): try --workers 1 or a smaller model"
                    ) from cause

    def _pool(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        # The environment is inherited by spawned workers before they import torch; initializers would come too late.
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=start_worker)
        running: dict[Future[dict[str, Any]], str] = {}
        try:
            while True:
                active = set(running.values())
                for key, cell, config in next_jobs():
                    if len(running) >= self.workers:
                        break
                    if key not in active:
                        running[pool.submit(run_trial, key, cell, config)] = key
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    yield future.result()
        finally:
            _stop(pool, bool(running))


def _stop(pool: ProcessPoolExecutor, unfinished: bool) -> None:
    """End the workers at once when trials are still running: their work is asked for again next time."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=not unfinished, cancel_futures=True)
    if unfinished:
        for process in processes:
            process.terminate()
