"""Where the time of a run goes: data, forward by visit, backward, optimiser, evaluation, checkpoint, waiting."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from loopscale.train.task import to_device
from loopscale.train.training import Training

PARTS = ("data", "forward", "backward", "optimiser", "evaluation", "checkpoint", "waiting")


class Profile:
    """Seconds of each part of a run, read with `table` when it has ended.

    On a GPU each part ends when the device has done it. Visits are seen where no compiled code hides them.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.visits: list[float] = []
        self.total = 0.0
        self._part, self._visit, self._entered = "", 0, 0.0
        self._device = torch.device("cpu")

    @contextmanager
    def of(self, training: Training) -> Iterator[None]:
        """Measure the training inside."""
        self._device, began = training.device, time.perf_counter()
        training.span = self._span

        def once() -> None:
            with torch.no_grad(), training.autocast(), training.task.evaluating():
                training.loss(to_device(training.first, training.device), training.config.model.loops)

        try:
            with training.task.visits.noted(once, self._begin, self._end):
                yield
        finally:
            self.total = time.perf_counter() - began

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        began = self._now()
        self._part, self._visit = name, 0
        try:
            yield
        finally:
            self._part = ""
            self.seconds[name] += self._now() - began

    def _begin(self, given: Any) -> None:
        if self._part == "forward":
            self._entered = self._now()

    def _end(self, output: Any) -> None:
        if self._part != "forward":
            return
        if self._visit == len(self.visits):
            self.visits.append(0.0)
        self.visits[self._visit] += self._now() - self._entered
        self._visit += 1

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def table(self) -> str:
        """Give a line for each part, its seconds and its share, with the visits of the forward pass below it."""
        rows = [("total", self.total), *((name, self.seconds[name]) for name in PARTS)]
        rows.append(("the rest", max(0.0, self.total - sum(self.seconds.values()))))
        lines = []
        for name, seconds in rows:
            lines.append(f"{name:<12}{seconds:10.3f} s {seconds / (self.total or 1):6.1%}")
            if name == "forward":
                lines += [
                    f"  visit {n:<4}{s:10.3f} s {s / (self.total or 1):6.1%}" for n, s in enumerate(self.visits, 1)
                ]
        return "\n".join(lines)
