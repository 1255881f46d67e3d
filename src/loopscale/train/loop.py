"""One training step, and the loop of a run folder around it: metrics, evaluations, checkpoints, orderly ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from loopscale.data import Prefetched
from loopscale.errors import UserError, expect
from loopscale.train import checkpoint, nonfinite
from loopscale.train.begin import Interrupt, alone, begun, continue_from, orderly, shown, signal_name
from loopscale.train.config import TrainConfig
from loopscale.train.load import make_config
from loopscale.train.parallel import whole
from loopscale.train.profile import Profile
from loopscale.train.run import Run, Warn, check_new, create_run, kept_once_begun, metrics_writer, open_run
from loopscale.train.task import StepRecord, rows_of, to_device
from loopscale.train.training import Training, evaluate, stream_rms
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


def train_step(training: Training) -> StepRecord:
    """Do the next step; on a non-finite loss or gradient nothing is updated and the record is not `finite`.

    Batch, rate and clipping are functions of the config and the step number alone, so a resumed run repeats them.
    """
    config, index, span = training.config, training.done, training.span
    rate = training.multiplier(index)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
    training.optimizer.zero_grad(set_to_none=True)
    with span("data"):
        batch = to_device(training.batches(index), training.device)
    loops = training.task.loops(index)
    with training.task.drawing(index):
        loss = _backward(training, batch, loops)
    # The one wait for the device, and for other ranks, in a step: both numbers come over together.
    with span("waiting"):
        loss = training.world.mean(loss)
        norm = whole(get_total_norm([p.grad for p in training.parameters if p.grad is not None]))
        loss_value, norm_value = torch.stack([loss, norm.to(loss.dtype)]).tolist()
    record = StepRecord(index + 1, loss_value, config.optim.lr * rate, norm_value, loops)
    if record.finite:
        with span("optimiser"):
            if 0 < config.optim.clip < norm_value:
                clip_grads_with_norm_(training.parameters, config.optim.clip, norm)
            training.optimizer.step()
        training.done = index + 1
    return record


def _backward(training: Training, batch: Any, loops: int) -> Tensor:
    """Leave the gradient of the mean loss of this rank's rows, `accumulate` parts one after the other; give the loss."""
    parts = training.config.train.accumulate
    each = training.config.data.batch_size // (training.world.size * parts)
    losses = []
    for number in range(parts):
        part = batch if parts == 1 else rows_of(batch, slice(number * each, (number + 1) * each))
        with training.sync(number == parts - 1):
            with training.span("forward"):
                loss = training.loss(part, loops) / parts  # of the house model: nn/transformer.py
            with training.span("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses[0] if parts == 1 else torch.stack(losses).sum()


def train_run(
    config: TrainConfig,
    out: Path,
    *,
    on_step: OnStep = _silent,
    warn: Warn = _silent,
    world: World | None = None,
    profile: Profile | None = None,
) -> Outcome:
    """Train into the new folder `out`; `on_step(line, steps)` gets every line of metrics.jsonl.

    world: what `joined()` gave, in a process that torchrun started. Every rank calls this; rank 0 alone writes and calls
    `on_step` and `warn`.

    Raises `UserError` when data, model or folder cannot be used, or the disk has no room for the checkpoints; nothing is
    written then. Ctrl-C, SIGTERM and a non-finite loss are outcomes.
    """
    expect(config, isinstance(config, TrainConfig), "a TrainConfig", "load_config(path) reads one from a file")
    world = World() if world is None else world
    with orderly() as interrupt, noticing_lost_ranks(world, out):
        world.same("the config", shown(config), "start every rank with the same file and the same --set")
        with world.together():
            if world.main:
                check_new(out)
        training = begun(config, world, warn if world.main else _silent, new=True)
        with world.together():
            if world.main:
                checkpoint.check_room(out, training)
                create_run(out, training)
        run = Run(out, training.config)
        with alone(run, world), kept_once_begun(run, world):
            return _loop(run, training, interrupt, on_step, profile)


def resume_run(
    path: Path,
    sets: tuple[str, ...] = (),
    *,
    on_step: OnStep = _silent,
    warn: Warn = _silent,
    world: World | None = None,
    profile: Profile | None = None,
) -> Outcome:
    """Continue the run in `path` from its newest whole checkpoint, on a CPU bitwise as if it had never stopped.

    `sets` replaces values of its config ("train.steps=2000" trains a finished run further); a value that changes the
    training is a warning. The number of ranks may be a different one: losses then agree to rounding.

    Raises `UserError` when the folder is damaged beyond its checkpoints, when a checkpoint or the user's file is of a
    different model, when the data have changed, or the disk has no room for the next checkpoint.
    """
    world = World() if world is None else world
    with world.together():
        run = open_run(path)
        run = Run(path, make_config(run.config.to_dict(), sets)) if sets else run
    world.same("the config", shown(run.config), "give every rank the same run folder")
    with orderly() as interrupt, noticing_lost_ranks(world, path), alone(run, world):
        training = begun(run.config, world, _silent, new=not checkpoint.listed(run.checkpoints))
        run = Run(path, training.config)
        continue_from(run, training, warn if world.main else _silent)
        return _loop(run, training, interrupt, on_step, profile)


def _loop(run: Run, training: Training, interrupt: Interrupt, on_step: OnStep, profile: Profile | None) -> Outcome:
    ready = Prefetched(training.task.batches, run.config.data.prefetch if training.task.ahead else 0)
    training.batches = ready
    try:
        with nullcontext() if profile is None else profile.of(training):
            return _steps(run, training, interrupt, on_step)
    finally:
        ready.close()
        training.batches = training.task.batches


def _steps(run: Run, training: Training, interrupt: Interrupt, on_step: OnStep) -> Outcome:
    began, settings, world = time.perf_counter(), run.config.train, training.world
    total, line, signal = settings.steps, dict[str, Any](), interrupt.signal
    problem: UserError | None = None
    saved = training.done if checkpoint.listed(run.checkpoints) else -1

    def save() -> None:
        with training.span("checkpoint"):
            checkpoint.save(run.checkpoints, training, settings.keep)

    def end(status: Literal["finished", "stopped", "nonfinite"], sentence: str, code: int) -> Outcome:
        seconds, loss, val_loss = time.perf_counter() - began, line.get("loss"), line.get("val_loss")
        return Outcome(status, str(run.path), training.done, total, loss, val_loss, seconds, code, sentence)

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
                return end("nonfinite", nonfinite.explain(training, record), 1)
            if _due(record.step, settings.checkpoint_every, total):
                _agree(world, problem)  # a checkpoint without its line of metrics could not be continued
                save()
                saved = record.step
        _agree(world, problem)
        if saved != training.done:
            save()
    if training.done < total:
        stopped = f"stopped by {signal_name(signal)} after step {training.done} of {total}"
        return end("stopped", f"{stopped}: continue with loopscale train --resume {run.path}", 128 + signal)
    if not line:
        line = {"val_loss": evaluate(training)}
    return end("finished", f"finished {total} steps", 0)


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
    name, each = ("rows", 1) if training.dataset is None else ("tokens", data.context)
    line[f"{name}_per_second"] = round(data.batch_size * each / seconds, 1)
    if record.finite and (record.step == 1 or _due(record.step, settings.stream_every)) and settings.stream_every:
        streams = [_finite(rms) for rms in stream_rms(training)]
        line |= {"stream_rms": streams} if streams else {}
    if record.finite and _due(record.step, settings.eval_every, settings.steps):
        val_loss = evaluate(training)
        line["val_loss"] = None if val_loss is None else _finite(val_loss)
    return record, line


def _due(step: int, every: int, last: int = 0) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
