"""Run trials in processes of this machine: one thread each, one per core, or pinned to GPUs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

from loopscale.errors import UserError
from loopscale.files import cores
from loopscale.study.executor import Executor, checked
from loopscale.study.trial import start_worker

GUARD = '`if __name__ == "__main__":`'


class LocalProcesses(Executor):
    """Processes on this machine.

    workers: by default one per core, or with `gpus` as many as the GPUs hold.
    gpus: of a trial: 1, 2, ... whole ones, or a share such as 0.25; workers are pinned to them in turn.

    Raises `UserError` for fewer than one worker, and for `gpus` where there are none.
    """

    lost = (BrokenProcessPool,)

    def __init__(self, workers: int | None = None, gpus: float = 0.0) -> None:
        self._devices = gpu_shares(gpus) if gpus else []
        self.slots = checked(workers, len(self._devices) or cores())
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it in the next free process; raises `UserError` as `refuse_import` does."""
        refuse_import()
        try:
            return self._running().submit(work, *arguments)
        except BrokenProcessPool:  # a process died, and takes the pool along
            self.close(unfinished=True)
            return self._running().submit(work, *arguments)

    def advise(self, cause: BaseException) -> str:
        """Name the two reasons that we know."""
        return (
            "worker processes keep dying: out of memory (try --workers 1 or a smaller model), or a script "
            f"that they import and that starts them outside {GUARD}"
        )

    def close(self, unfinished: bool) -> None:
        """End the processes, at once when work is still running: it is asked for again next time."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=not unfinished, cancel_futures=True)
        for process in processes if unfinished else []:
            process.terminate()

    def _running(self) -> ProcessPoolExecutor:
        self._pool = self._pool or spawned(self.slots, devices=self._devices)
        return self._pool


def refuse_import() -> None:
    """Raise `UserError` in a process that is just importing the script that started it.

    It would start processes of its own, or wait for its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(f"a script starts trials where their processes import it: put that under {GUARD}")


def gpu_shares(gpus: float) -> list[str]:
    """Name the GPUs of each trial that runs at once, as CUDA_VISIBLE_DEVICES does; shares go round the devices.

    Raises `UserError` where there are too few, and for a share that is no positive number.
    """
    import torch

    if not gpus > 0 or (gpus > 1 and gpus != int(gpus)):
        raise UserError(f"a trial takes a share of a GPU or whole ones, got --gpus {gpus:g}: such as 0.25, 1 or 2")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = seen.split(",")[:count] if seen else [str(number) for number in range(count)]
    whole = max(1, int(gpus))
    if count < whole:
        raise UserError(f"a trial asks for {gpus:g} GPU(s) and this machine has {count}: leave --gpus out, or use ray")
    if gpus < 1:
        return names * int(1 / gpus + 1e-9)
    return [",".join(names[start : start + whole]) for start in range(0, count - whole + 1, whole)]


def spawned(workers: int, together: bool = False, devices: list[str] | None = None) -> ProcessPoolExecutor:
    """Make a pool of processes with one thread each.

    together: none begins before all have started. devices: the GPUs of the first, second, ... process, in turn.
    """
    # The environment is inherited by spawned workers before they import torch; initializers would come too late.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(workers) if together else None
    pins: SimpleQueue[str] | None = context.SimpleQueue() if devices else None
    if pins is not None and devices:
        for number in range(10 * workers):  # a process that takes the place of one that ended takes the next name
            pins.put(devices[number % len(devices)])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(meeting, pins))


def _begin(meeting: Barrier | None, pins: SimpleQueue[str] | None) -> None:
    if pins is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = pins.get()
    start_worker(meeting)
