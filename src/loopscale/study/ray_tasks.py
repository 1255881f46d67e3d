"""Trials as Ray core tasks: on this machine or a cluster; the trials of a lost worker run again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, require
from loopscale.study.executor import Job
from loopscale.study.trial import run_trial


class RayTasks:
    """Ray core tasks (a millisecond each, where Ray Tune takes seconds a trial), one core and `gpus` of a GPU a trial.

    address: of a running cluster, "auto" for the one this machine belongs to; None starts one on this machine.
    workers: at most so many at once; by default as many as the cluster has cores (or shares of GPUs).

    Raises `UserError` when the cluster cannot be reached, and `MissingExtraError` without ray.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, gpus: float = 0.0) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"workers must be at least 1, got {workers}")
        self.address, self.workers, self.gpus = address, workers, gpus

    @property
    def slots(self) -> int:
        """One trial a core, or a share of a GPU."""
        ray = self._connected()
        resources = ray.cluster_resources()
        room = resources.get("GPU", 0) / self.gpus if self.gpus else resources.get("CPU", 1)
        return max(1, min(int(room), self.workers or int(room)))

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """Yield records as trials end; ask `next_jobs` again after each."""
        ray = self._connected()
        # A task whose worker dies is run again by Ray, without end: a study must not lose a trial to a lost machine.
        task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=-1)(_trial)
        running: dict[Any, str] = {}
        slots, here = self.slots, os.getcwd()
        try:
            while True:
                active = set(running.values())
                for key, cell, config in next_jobs():
                    if len(running) >= slots:
                        break
                    if key not in active:
                        running[task.remote(key, cell, config, here)] = key
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    del running[reference]
                    yield self._got(ray, reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _connected(self) -> Any:
        ray = require("ray", "ray")
        if not ray.is_initialized():
            own = {} if self.address else {"num_cpus": self.workers, "include_dashboard": False}
            try:
                # "local": without it Ray would join whatever cluster it finds on this machine.
                ray.init(address=self.address or "local", log_to_driver=False, logging_level="ERROR", **own)
            except (ConnectionError, RuntimeError, ValueError) as cause:
                where = self.address or "this machine"
                raise UserError(
                    f"no Ray cluster at {where} ({str(cause).splitlines()[0][:120]}): start one with ray start --head"
                ) from None
        return ray

    def _got(self, ray: Any, reference: Any) -> dict[str, Any]:
        try:
            record: dict[str, Any] = ray.get(reference)
            return record
        except ray.exceptions.RayTaskError as cause:
            error = cause.as_instanceof_cause()
            if isinstance(error, UserError):
                raise UserError(str(error)) from None
            raise error from None


def _trial(key: str, cell: dict[str, Any], config: dict[str, Any], folder: str) -> dict[str, Any]:
    """One trial in a Ray worker, with one thread, in the folder of the caller where that exists."""
    import torch

    torch.set_num_threads(1)
    if Path(folder).is_dir():
        os.chdir(folder)  # a user's own model is named relative to it
    return run_trial(key, cell, config)
