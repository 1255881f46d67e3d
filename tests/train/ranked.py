"""What the ranks of the tests do; functions of a module, so that other processes find them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from loopscale.train import TrainConfig, joined, resume_run, train_run
from loopscale.train.loop import train_step
from loopscale.train.training import evaluate, prepare, stream_rms


def config_of(values: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate(values)


def losses(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Losses and norms of some steps, and what is measured beside."""
    with joined() as world:
        training = prepare(config_of(values), world=world)
        records = [train_step(training) for _ in range(steps)]
        return {
            "losses": [record.loss for record in records],
            "norms": [record.grad_norm for record in records],
            "val_loss": evaluate(training),
            "stream_rms": stream_rms(training),
        }


def compiled(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Losses and N of some steps with a compiled body, and how many graphs there are before them and after."""
    from torch._dynamo.testing import CompileCounterWithBackend

    from loopscale.nn import transformer

    counter, compile = CompileCounterWithBackend("aot_eager"), torch.compile
    transformer.torch.compile = lambda function, **options: compile(function, **{**options, "backend": counter})
    with joined() as world:
        training = prepare(config_of(values), world=world)
        before = counter.frame_count
        records = [train_step(training) for _ in range(steps)]
        return {
            "losses": [record.loss for record in records],
            "loops": [record.loops for record in records],
            "graphs": (before, counter.frame_count),
        }


def collectives(values: dict[str, Any], loops: int) -> dict[str, int]:
    """How often each collective runs in one step, by torch's profiler."""
    with joined() as world:
        values = {**values, "model": {**values["model"], "loops": loops}}
        training = prepare(config_of(values), world=world)
        train_step(training)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            train_step(training)
        counts: dict[str, int] = {}
        for event in profile.events():
            if event.name.startswith("c10d::"):
                counts[event.name] = counts.get(event.name, 0) + 1
        return counts


def run(
    values: dict[str, Any], out: str, die_at: int = 0, victim: int = -1, number: int = signal.SIGKILL
) -> dict[str, Any]:
    """Train into `out`, or continue what is there; the victim sends itself a signal after step `die_at`."""
    from loopscale.train import loop

    with joined() as world:
        if victim == world.rank:
            measured = loop._measured_step

            def deadly(training: Any) -> Any:
                result = measured(training)
                if training.done == die_at:
                    os.kill(os.getpid(), number)
                return result

            loop._measured_step = deadly
        path = Path(out)
        if (path / "config.toml").exists():
            outcome = resume_run(path, world=world)
        else:
            outcome = train_run(config_of(values), path, world=world)
        return {"status": outcome.status, "step": outcome.step, "sentence": outcome.sentence, "code": outcome.exit_code}


def run_at_the_gate(values: dict[str, Any], out: str, gate: str, number: int) -> str:
    """Train into `out`, which is made once the file `gate` is there: all who wait have then seen that nobody made it."""
    from loopscale.train import loop

    create = loop.create_run

    def wait(*arguments: Any) -> Any:
        Path(gate).with_name(f"ready-{number}").touch()
        while not Path(gate).exists():
            pass
        return create(*arguments)

    loop.create_run = wait
    return train_run(config_of(values), Path(out)).status


def differing_run(values: dict[str, Any], out: str) -> None:
    """Rank 1 has another learning rate."""
    with joined() as world:
        if world.rank == 1:
            values = {**values, "optim": {**values["optim"], "lr": 0.5}}
        train_run(config_of(values), Path(out), world=world)


def broken_run(values: dict[str, Any], out: str, data: str) -> None:
    """Rank 1 has no data."""
    with joined() as world:
        if world.rank == 1:
            values = {**values, "data": {**values["data"], "path": data}}
        prepare(config_of(values), world=world)


def poisoned_run(
    values: dict[str, Any], out: str, at: int, victim: int, number: float = float("nan")
) -> dict[str, Any]:
    """Train into `out`; in step `at` the embedding of one rank gives `number`. Says whether that step changed a weight."""
    from loopscale.train import loop

    measured, seen = loop._measured_step, dict[str, Any]()

    def poisoned(training: Any) -> Any:
        if training.done != at - 1:
            return measured(training)
        if world.rank == victim:
            training.model.embedding.register_forward_hook(lambda module, inputs, output: output * number)
        before = local_weights(training.model)
        result = measured(training)
        after = local_weights(training.model)
        seen["untouched"] = all(torch.equal(before[name], after[name]) for name in before)
        return result

    with joined() as world:
        loop._measured_step = poisoned
        outcome = train_run(config_of(values), Path(out), world=world)
        return {"status": outcome.status, "step": outcome.step, "sentence": outcome.sentence, **seen}


def local_weights(model: Any) -> dict[str, Any]:
    """What this rank holds."""
    return {name: getattr(p, "_local_tensor", p).detach().clone() for name, p in model.named_parameters()}


def run_on_a_full_disk(values: dict[str, Any], out: str, at: int, victim: int) -> None:
    """The checkpoint of step `at`: what one rank writes goes to a device that is always full."""
    from loopscale.train import sharded

    write = sharded.write_tensors

    def full(folder: Path, name: str, tensors: Any, **ranks: Any) -> Path:
        if world.rank == victim and folder.name.startswith(f".step-{at:06d}"):
            (folder / f"shard-{victim + 1:05d}-model-00001-of-00001.safetensors").symlink_to("/dev/full")
        return write(folder, name, tensors, **ranks)

    with joined() as world:
        sharded.write_tensors = full
        train_run(config_of(values), Path(out), world=world)


def run_that_fills_the_disk(values: dict[str, Any], out: str, ballast: str, at: int) -> None:
    """Rank 0 fills the disk of `ballast` after step `at`."""
    from loopscale.train import checkpoint

    checkpoint.SLACK = 0  # the disk is smaller than the slack that is asked for

    def fill(line: dict[str, Any], steps: int) -> None:
        if line["step"] == at:
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    pass

    with joined() as world:
        path = Path(out)
        if (path / "config.toml").exists():
            resume_run(path, on_step=fill, world=world)
        else:
            train_run(config_of(values), path, on_step=fill, world=world)
