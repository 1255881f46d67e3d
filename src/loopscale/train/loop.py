"""The training loop of a run folder: metrics, evaluations, checkpoints, orderly ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loopscale.data import Prefetched
from loopscale.errors import UserError
from loopscale.train import checkpoint, nonfinite
from loopscale.train.config import TrainConfig
from loopscale.train.interrupt import Interrupt, orderly, signal_name
from loopscale.train.room import check_room
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
from loopscale.train.world import World, noticing_lost_ranks

FAILED = 255  # in place of a signal's number: rank 0 cannot write
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


def train_run(config: TrainConfig, out: Path, *, on_step: OnStep = _silent, world: World | None = None) -> Outcome:
    """Train into the new folder `out`; `on_step(line, steps)` gets every line of metrics.jsonl.

    world: what `joined()` gave, in a process that torchrun started. Every rank calls this; rank 0 alone writes and calls
    `on_step`.

    Raises `UserError` when data, model or folder cannot be used, or the disk has no room for the checkpoints; nothing is
    written then. Ctrl-C, SIGTERM and a non-finite loss are outcomes.
    """
    world = World() if world is None else world
    with orderly() as interrupt, noticing_lost_ranks(world, _lost(out)):
        world.same("the config", _shown(config), "start every rank with the same file and the same --set")
        with world.together():
            if world.main:
                check_new(out)
        training = prepare(config, world=world)
        with world.together():
            if world.main:
                check_room(out, training)
                create_run(out, training)
        with _alone(Run(out, config), world):
            return _loop(Run(out, config), training, interrupt, on_step)


def resume_run(path: Path, *, on_step: OnStep = _silent, warn: Warn = _silent, world: World | None = None) -> Outcome:
    """Continue the run in `path` from its newest whole checkpoint, on a CPU bitwise as if it had never stopped.

    The number of ranks may be another one: losses then agree to rounding.

    Raises `UserError` when the folder is damaged beyond its checkpoints, when a checkpoint is of another model, when the
    data have changed, or the disk has no room for the next checkpoint.
    """
    world = World() if world is None else world
    with world.together():
        run = open_run(path)
    world.same("the config", _shown(run.config), "give every rank the same run folder")
    with orderly() as interrupt, noticing_lost_ranks(world, _lost(path)), _alone(run, world):
        training = prepare(run.config, world=world)
        _continue_from(run, training, warn if world.main else _silent)
        return _loop(run, training, interrupt, on_step)


def _continue_from(run: Run, training: Training, warn: Warn) -> None:
    world, newest = training.world, None
    with world.together():
        newest = run.newest_whole(warn) if world.main else None
    name = world.of_main("" if newest is None else newest.name)
    if not name:
        warn("the run has no checkpoint yet: it starts from step 1")
    else:
        for change in checkpoint.changes(run.checkpoints / name, training):
            warn(f"{change}: from here on it is another training")
        checkpoint.load(run.checkpoints / name, training)
    with world.together():
        if world.main:
            check_room(run.path, training)
            note_resumption(run, training, warn)
            cut_metrics(run, training.done)


@contextmanager
def _alone(run: Run, world: World) -> Iterator[None]:
    """Keep a second training out of the folder; rank 0 holds the lock for all."""
    with ExitStack() as held:
        with world.together():
            if world.main:
                held.enter_context(exclusive(run))
        yield


def _shown(config: TrainConfig) -> dict[str, str]:
    return {key: str(value) for key, value in config.flat().items()}


def _lost(path: Path) -> str:
    return f"a rank was lost: continue from the last checkpoint with torchrun ... -m loopscale train --resume {path}"


def _loop(run: Run, training: Training, interrupt: Interrupt, on_step: OnStep) -> Outcome:
    plain = training.batches
    ready = Prefetched(plain, run.config.data.prefetch)
    training.batches = ready
    try:
        return _steps(run, training, interrupt, on_step)
    finally:
        ready.close()
        training.batches = plain


def _steps(run: Run, training: Training, interrupt: Interrupt, on_step: OnStep) -> Outcome:
    began, settings, world = time.perf_counter(), run.config.train, training.world
    total, line, signal = settings.steps, dict[str, Any](), interrupt.signal
    problem: UserError | None = None
    saved = training.done if checkpoint.listed(run.checkpoints) else -1
    with metrics_writer(run) if world.main else nullcontext(_silent) as write:
        while training.done < total:
            problem = problem or _tried(training.batches, training.done)
            if signal := world.highest(FAILED if problem else interrupt.signal, training.device):
                break
            record, line = _measured_step(training)
            problem = _tried(write, line)
            if world.main:
                on_step(line, total)
            if not record.finite:
                return _outcome(run, training, "nonfinite", line, began, nonfinite.explain(training, record), 1)
            if _due(record.step, settings.checkpoint_every, total):
                _agree(world, problem)  # a checkpoint without its line of metrics could not be continued
                checkpoint.save(run.checkpoints, training, settings.keep)
                saved = record.step
        _agree(world, problem)
        if saved != training.done:
            checkpoint.save(run.checkpoints, training, settings.keep)
    if training.done < total:
        sentence = (
            f"stopped by {signal_name(signal)} after step {training.done} of {total}: "
            f"continue with loopscale train --resume {run.path}"
        )
        return _outcome(run, training, "stopped", line, began, sentence, 128 + signal)
    if not line:
        line = {"val_loss": evaluate(training)}
    return _outcome(run, training, "finished", line, began, f"finished {total} steps", 0)


def _tried(action: Callable[[Any], object], argument: Any) -> UserError | None:
    """Do what may fail on one rank alone: a full disk, a damaged shard are told to all before their next step together."""
    try:
        action(argument)
    except UserError as problem:
        return problem
    return None


def _agree(world: World, problem: UserError | None) -> None:
    """Raise a rank's problem on every rank."""
    with world.together():
        if problem is not None:
            raise problem


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
