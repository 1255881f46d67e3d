"""What the ranks of the tests do; functions of a module, so that other processes find them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from loopscale.train import TrainConfig, joined, resume_run, train_run
from loopscale.train.training import evaluate, prepare, stream_rms, train_step


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
