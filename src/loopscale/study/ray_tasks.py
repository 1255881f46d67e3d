"""Run trials as Ray core tasks: on this machine or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, first_line, require
from loopscale.study.executor import Executor, checked


class RayTasks(Executor):
    """Ray core tasks (a millisecond each, where Ray Tune takes seconds per trial), one core and `gpus` of a GPU each.

    address: of a running cluster, "auto" for the one this machine belongs to; None starts one on this machine.
    workers: at most so many at once; by default as many as the cluster has cores (or shares of GPUs).
    A task whose worker dies is run again by Ray.

    Raises `UserError` when the cluster cannot be reached or has no GPU to give, `MissingExtraError` without ray.
    """

    here = False

    def __init__(self, address: str | None = None, workers: int | None = None, gpus: float = 0.0) -> None:
        self._most = checked(workers, 0)
        self.address, self.gpus = address, gpus
        self._unfinished: dict[Future[Any], Any] = {}

    @property
    def slots(self) -> int:  # type: ignore[override]
        """One trial per core, or per share of a GPU."""
        resources = self._ray.cluster_resources()
        if self.gpus and resources.get("GPU", 0) < self.gpus:
            has = resources.get("GPU", 0)
            raise UserError(f"a trial asks for {self.gpus:g} GPU(s) and the Ray cluster has {has:g}: leave --gpus out")
        room = resources.get("GPU", 0) / self.gpus if self.gpus else resources.get("CPU", 1)
        return max(1, min(int(room), self._most or int(room)))

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it as a task, in the folder of this process where the worker has it."""
        task = self._ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=-1)(_trial)
        reference = task.remote(work, arguments, os.getcwd())
        future: Future[Any] = reference.future()
        self._unfinished[future] = reference
        future.add_done_callback(lambda done: self._unfinished.pop(done, None))
        return future

    def records(self, jobs: list[Any], found: Any) -> list[dict[str, Any]]:
        """Raise here what a user's mistake raised there, under its own name."""
        if isinstance(found, UserError):
            raise found
        return [found]

    def close(self, unfinished: bool) -> None:
        """Cancel what is running; the cluster stays."""
        for reference in list(self._unfinished.values()):
            self._ray.cancel(reference, force=True)

    @cached_property
    def _ray(self) -> Any:
        ray = require("ray", "ray")
        if not ray.is_initialized():
            own = {} if self.address else {"num_cpus": self._most or None, "include_dashboard": False}
            try:
                # "local": without it Ray would join whatever cluster it finds on this machine.
                ray.init(address=self.address or "local", log_to_driver=False, logging_level="ERROR", **own)
            except (ConnectionError, RuntimeError, ValueError) as cause:
                where = self.address or "this machine"
                raise UserError(
                    f"no Ray cluster at {where} ({first_line(cause, 120)}): start one with ray start --head"
                ) from None
        return ray


def _trial(work: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
    """Do the work in a Ray worker, with one thread; a `UserError` is returned, as Ray would rename it."""
    import torch

    torch.set_num_threads(1)
    if Path(folder).is_dir():
        os.chdir(folder)  # a user's model is named relative to it
    try:
        return work(*arguments)
    except UserError as mistake:
        return mistake
