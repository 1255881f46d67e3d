"""The training loop of a run folder: metrics, evaluations, checkpoints, orderly ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loopscale.train import checkpoint, nonfinite
from loopscale.train.config import TrainConfig
from loopscale.train.interrupt import Interrupt, orderly
from loopscale.train.run import (
    Run,
    Warn,
    check_new,
    create_run,
    cut_metrics,
    exclusive,
    metrics_writer,
    note_resumption,
    open_run,
)
from loopscale.train.training import StepRecord, Training, evaluate, prepare, stream_rms, train_step

OnStep = Callable[[dict[str, Any], int], object]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. Exit codes: finished 0, non-finite 1, Ctrl-C 130, SIGTERM 143 (128 + the signal's number)."""

    status: Literal["finished", "stopped", "nonfinite"]
    run: str
    step: int
    steps: int
    loss: float | None
    val_loss: float | None
    seconds: float
    exit_code: int
    sentence: str


def _silent(*_: object) -> None:
    return None


def train_run(config: TrainConfig, out: Path, *, on_step: OnStep = _silent) -> Outcome:
    """Train into the new folder `out`; `on_step(line, steps)` gets every line of metrics.jsonl.

    Raises `UserError` when data, model or folder cannot be used; nothing is written then. Ctrl-C, SIGTERM and a
    non-finite loss are outcomes.
    """
    with orderly() as interrupt:
        check_new(out)
        training = prepare(config)
        run = create_run(out, training)
        with exclusive(run):
            return _loop(run, training, interrupt, on_step)


def resume_run(path: Path, *, on_step: OnStep = _silent, warn: Warn = _silent) -> Outcome:
    """Continue the run in `path` from its newest whole checkpoint, on a CPU bitwise as if it had never stopped.

    Raises `UserError` when the folder is damaged beyond its checkpoints or the data have changed.
    """
    run = open_run(path)
    with orderly() as interrupt, exclusive(run):
        training = prepare(run.config)
        newest = run.newest_whole(warn)
        if newest is None:
            warn("the run has no checkpoint yet: it starts from step 1")
        else:
            checkpoint.load(newest, training)
        note_resumption(run, training, warn)
        cut_metrics(run, training.done)
        return _loop(run, training, interrupt, on_step)


def _loop(run: Run, training: Training, interrupt: Interrupt, on_step: OnStep) -> Outcome:
    began, total = time.perf_counter(), run.config.train.steps
    line: dict[str, Any] = {}
    saved = training.done if checkpoint.listed(run.checkpoints) else -1
    with metrics_writer(run) as write:
        while training.done < total and not interrupt.signal:
            record, line = _measured_step(training)
            write(line)
            on_step(line, total)
            if not record.finite:
                return _outcome(run, training, "nonfinite", line, began, nonfinite.explain(training, record), 1)
            if _due(record.step, run.config.train.checkpoint_every, total):
                checkpoint.save(run.checkpoints, training, run.config.train.keep)
                saved = record.step
        if saved != training.done:
            checkpoint.save(run.checkpoints, training, run.config.train.keep)
    if training.done < total:
        sentence = (
            f"stopped by {interrupt.name} after step {training.done} of {total}: "
            f"continue with loopscale train --resume {run.path}"
        )
        return _outcome(run, training, "stopped", line, began, sentence, 128 + interrupt.signal)
    if not line:
        line = {"val_loss": evaluate(training)}
    return _outcome(run, training, "finished", line, began, f"finished {total} steps", 0)


def _measured_step(training: Training) -> tuple[StepRecord, dict[str, Any]]:
    """Do a step and give its line of metrics.jsonl; what is not finite is null there."""
    settings, data = training.config.train, training.config.data
    began = time.perf_counter()
    record = train_step(training)
    seconds = time.perf_counter() - began
    line: dict[str, Any] = {key: _finite(value) for key, value in asdict(record).items()}
    line["tokens_per_second"] = round(data.batch_size * data.context / seconds, 1)
    if record.finite and (record.step == 1 or _due(record.step, settings.stream_every)) and settings.stream_every:
        line["stream_rms"] = [_finite(rms) for rms in stream_rms(training)]
    if record.finite and _due(record.step, settings.eval_every, settings.steps):
        val_loss = evaluate(training)
        line["val_loss"] = None if val_loss is None else _finite(val_loss)
    return record, line


def _due(step: int, every: int, last: int = 0) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _outcome(
    run: Run,
    training: Training,
    status: Literal["finished", "stopped", "nonfinite"],
    line: dict[str, Any],
    began: float,
    sentence: str,
    exit_code: int,
) -> Outcome:
    return Outcome(
        status=status,
        run=str(run.path),
        step=training.done,
        steps=run.config.train.steps,
        loss=line.get("loss"),
        val_loss=line.get("val_loss"),
        seconds=time.perf_counter() - began,
        exit_code=exit_code,
        sentence=sentence,
    )
