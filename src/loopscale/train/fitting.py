"""Training in memory, what a study does a thousand times, and when a training is lost: one definition for all trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

from loopscale.data import Dataset
from loopscale.train.config import TrainConfig
from loopscale.train.loop import train_step
from loopscale.train.task import StepRecord
from loopscale.train.training import evaluate, prepare, stream_rms

EXPLODED = 3.0  # a loss this many times the first one ...
PATIENCE = 50  # ... for this many steps in a row does not come back
WORSE = 1.0  # nats above the first loss at the end: worse than no training
SMOOTHING = 10  # steps in the mean that is compared
CURVE_POINTS = 200

Stop = Callable[[StepRecord], bool]


@dataclass(frozen=True)
class Fit:
    """What one training gave; all numbers are finite.

    `val_loss` is None when the training diverged, was stopped, or evaluates on no batch. `stream_initial` and
    `stream_final` are the stream's RMS at entry and after each visit, cut before the first that is not finite.
    `train_loss` is the mean of the last ten steps, `stopped` says that `stop` ended it.
    """

    val_loss: float | None
    diverged_at: int | None
    curve: list[list[float]] = field(default_factory=list)
    stream_initial: list[float] = field(default_factory=list)
    stream_final: list[float] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    stopped: bool = False
    train_loss: float | None = None


class Course:
    """What one training in memory goes through: its losses, and whether it is lost or stopped; at the end, its `Fit`.

    Lost, at the step (from 1) `diverged_at`, means: a loss or gradient that is not finite; a loss above 3 times the first
    for 50 steps in a row; or, at the end, a mean over the last 10 steps that is more than 1 nat above the first loss.

    `stop`: asked after each step but the last, with its record; True ends the training there.
    """

    def __init__(self, steps: int, stop: Stop | None = None) -> None:
        self._steps, self._stop = steps, stop
        self._losses, self._recent, self._high = list[float](), list[float](), 0
        self.running, self.stopped = True, False
        self.diverged_at: int | None = None

    def take(self, record: StepRecord) -> None:
        """Take in one step."""
        self._losses.append(record.loss)
        first, last = self._losses[0], record.step >= self._steps
        if record.finite:
            self._recent = [*self._recent[1 - SMOOTHING :], record.loss]
            self._high = self._high + 1 if record.loss > EXPLODED * first else 0
            if self._high >= PATIENCE:
                self.diverged_at = record.step - PATIENCE + 1
            elif last and sum(self._recent) / len(self._recent) > first + WORSE:
                self.diverged_at = record.step
        else:
            self.diverged_at = record.step
        if self.diverged_at is None and not last and self._stop is not None:
            self.stopped = self._stop(record)
        self.running = not (last or self.stopped or self.diverged_at is not None)

    @property
    def whole(self) -> bool:
        """Whether it came to its end and is worth an evaluation."""
        return not self.running and not self.stopped and self.diverged_at is None

    def fit(self, val_loss: float | None, done: int, seconds: float, initial: list[float], final: list[float]) -> Fit:
        """Return the result after `done` steps; `val_loss` counts only where the training is whole."""
        loss, diverged_at = val_loss if self.whole else None, self.diverged_at
        if loss is not None and not math.isfinite(loss):
            loss, diverged_at = None, done
        return Fit(
            val_loss=loss,
            diverged_at=diverged_at,
            curve=thinned(self._losses),
            stream_initial=finite_start(initial),
            stream_final=finite_start(final),
            seconds=seconds,
            steps=done,
            stopped=self.stopped,
            train_loss=sum(self._recent) / len(self._recent) if self._recent else None,
        )


def fit(config: TrainConfig, *, dataset: Dataset | None = None, stop: Stop | None = None) -> Fit:
    """Train as the config says and evaluate at the end; a pure function of config and versions, except `seconds`.

    dataset: read once and shared between fits; by default the config's own is loaded.
    stop: asked after each step, with its record; True ends the training there (`Fit.stopped`).

    Raises `UserError` when data, model or optimizer cannot be built. Divergence is a result, not an error.
    """
    began = time.perf_counter()
    training = prepare(config, dataset)
    initial = stream_rms(training)
    course = Course(config.train.steps, stop)
    while course.running:
        course.take(train_step(training))
    val_loss = evaluate(training) if course.whole else None
    return course.fit(val_loss, training.done, time.perf_counter() - began, initial, stream_rms(training))


def finite_start(values: list[float]) -> list[float]:
    """Return the values before the first that is not finite."""
    return list(takewhile(math.isfinite, values))


def thinned(losses: list[float]) -> list[list[float]]:
    """Keep evenly spaced [step, loss] points and the last one; non-finite losses are left out: JSON has none."""
    stride = math.ceil(len(losses) / CURVE_POINTS) or 1
    kept = [*range(0, len(losses) - 1, stride), len(losses) - 1] if losses else []
    return [[index + 1, losses[index]] for index in kept if math.isfinite(losses[index])]
