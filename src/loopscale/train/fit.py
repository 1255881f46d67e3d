"""Training in memory: nothing is written. What a study does a thousand times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from loopscale.data import Dataset
from loopscale.train.config import TrainConfig
from loopscale.train.divergence import Divergence
from loopscale.train.training import StepRecord, evaluate, prepare, stream_rms, train_step

CURVE_POINTS = 200


@dataclass(frozen=True)
class Fit:
    """What one training gave; all numbers are finite.

    `val_loss` is None when the training diverged, was stopped, or evaluates on no batch. `stream_initial` and
    `stream_final` are the stream's RMS at entry and after each visit, cut before the first that is not finite.
    `train_loss` is the mean of the last ten steps, `stopped` says that `stop` ended it.
    """

    val_loss: float | None
    diverged_at: int | None
    curve: list[list[float]]
    stream_initial: list[float]
    stream_final: list[float]
    seconds: float
    steps: int
    stopped: bool
    train_loss: float | None


def fit(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    observer: Callable[[StepRecord], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Fit:
    """Train as the config says and evaluate at the end; a pure function of config and versions, except `seconds`.

    dataset: read once and shared between fits; by default the config's own is loaded.
    observer: called after each step. stop: asked after each step; True ends the training there (`Fit.stopped`).

    Raises `UserError` when data, model or optimizer cannot be built. Divergence is a result, not an error.
    """
    began = time.perf_counter()
    training = prepare(config, dataset)
    initial = _finite_start(stream_rms(training))
    watch, losses, stopped = Divergence(), [], False
    while training.done < config.train.steps and not stopped:
        record = train_step(training)
        losses.append(record.loss)
        if observer is not None:
            observer(record)
        if watch.observe(record):
            break
        stopped = training.done < config.train.steps and stop is not None and stop()
    diverged_at = watch.at if stopped else watch.verdict()
    val_loss = evaluate(training) if diverged_at is None and not stopped else None
    if val_loss is not None and not math.isfinite(val_loss):
        val_loss, diverged_at = None, training.done
    return Fit(
        val_loss=val_loss,
        diverged_at=diverged_at,
        curve=thinned(losses),
        stream_initial=initial,
        stream_final=_finite_start(stream_rms(training)),
        seconds=time.perf_counter() - began,
        steps=training.done,
        stopped=stopped,
        train_loss=watch.smoothed,
    )


def _finite_start(values: list[float]) -> list[float]:
    return list(takewhile(math.isfinite, values))


def thinned(losses: list[float]) -> list[list[float]]:
    """Keep evenly spaced [step, loss] points and the last one; non-finite losses are left out: JSON has none."""
    stride = math.ceil(len(losses) / CURVE_POINTS) or 1
    kept = [*range(0, len(losses) - 1, stride), len(losses) - 1] if losses else []
    return [[index + 1, losses[index]] for index in kept if math.isfinite(losses[index])]
