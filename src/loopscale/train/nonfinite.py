"""Find where a non-finite value was born: which module, at which visit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.probe.noting import Given, noting
from loopscale.probe.untouched import eager
from loopscale.train.parallel import whole
from loopscale.train.task import StepRecord, to_device
from loopscale.train.training import Training


def find(training: Training) -> str:
    """Run the next batch again, watching every module; say where a value was first not finite, "'core.0' at visit 3"."""
    first: list[str] = []
    visits = Counter[str]()

    def note(name: str, module: nn.Module, given: Given, output: Any) -> None:
        visits[name] += 1
        if not first and isinstance(output, Tensor) and not torch.isfinite(output).all():
            first.append(f"{name!r} at visit {visits[name]}")

    names = [name for name, _ in training.model.named_modules() if name]
    # Hooks do not fire inside a compiled body.
    with torch.no_grad(), eager(), noting(training.model, note, names), training.task.drawing(training.done):
        batch = to_device(training.batches(training.done), training.device)
        training.loss(batch, training.task.loops(training.done))
    return "".join(first)


def explain(training: Training, record: StepRecord) -> str:
    """Say in one sentence at which step, module and visit the training broke, and what to try."""
    # A bad sequence is in the rows of one rank.
    place = next(filter(None, training.world.texts(find(training))), None)
    if place is not None:
        where = f"the first non-finite value came out of {place}"
    else:
        bad = [
            name
            for name, p in training.model.named_parameters()
            if p.grad is not None and not whole(p.grad).isfinite().all()
        ]
        where = f"the forward pass is finite, the gradient of {bad[-1]!r} is not" if bad else "only the sum overflows"
    optim = training.config.optim
    clip = "" if optim.clip else ", optim.clip = 1"
    what = "loss" if not torch.isfinite(torch.tensor(record.loss)) else "gradient"
    return (
        f"the {what} is not finite at step {record.step}: {where}; "
        f"try a lower optim.lr (now {optim.lr:g}), a longer optim.warmup (now {optim.warmup:g}){clip}"
    )
