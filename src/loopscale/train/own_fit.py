"""Train a user's own model in memory: the optimizer groups, schedule and divergence of the house model."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from loopscale.optim import build_optimizer, schedule
from loopscale.parameterization import Depth, Width
from loopscale.train.config import TrainConfig
from loopscale.train.fit import Course, Fit
from loopscale.train.own import OwnModel, make_own, scalar
from loopscale.train.training import StepRecord

Stop = Callable[[StepRecord], bool]


def fit_own(place: str, config: TrainConfig, *, stop: Stop | None = None) -> Fit:
    """Train and evaluate; like `fit`, a pure function of config, source and versions, except `seconds`.

    stop: asked after each step, with its record; True ends the training there.

    Raises `UserError` as `make_own` does, and for a loss that is no scalar. Divergence is a result, not an error.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        return _fit(make_own(place, config), config, stop)


def _fit(own: OwnModel, config: TrainConfig, stop: Stop | None) -> Fit:
    began = time.perf_counter()
    optimizer, steps = own_optimizer(own, config), config.train.steps
    multiplier = schedule(config.optim.schedule, steps, min(round(config.optim.warmup * steps), steps - 1))
    course, done = Course(steps, stop), 0
    own.model.train()
    for batch in own.batches("train"):  # endless
        course.take(own_step(own, optimizer, batch, config, done, multiplier(done)))
        done += 1
        if not course.running:
            break
    val_loss = own_evaluate(own, config) if course.whole else None
    return course.fit(val_loss, done, time.perf_counter() - began, [], [])


def own_optimizer(own: OwnModel, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's roles under the config's rule and size."""
    optim, size = config.optim, config.model
    return build_optimizer(
        own.model,
        optim.optimizer,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        eps=optim.eps,
        momentum=optim.momentum,
        rule=size.rule,
        depth=Depth(size.loops, size.layers),
        width=Width(size.width, size.base_width),
        base_layers=size.base_layers,
        roles=own.roles,
    )


def own_step(
    own: OwnModel, optimizer: torch.optim.Optimizer, batch: Any, config: TrainConfig, index: int, rate: float
) -> StepRecord:
    """One step at `rate` times the initial rates; on a non-finite loss or gradient nothing is updated."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
    optimizer.zero_grad(set_to_none=True)
    loss = scalar(own.loss(own.model, batch))
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in own.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    record = StepRecord(index + 1, float(loss.detach()), config.optim.lr * rate, float(norm))
    if record.finite:
        if 0 < config.optim.clip < record.grad_norm:
            clip_grads_with_norm_(parameters, config.optim.clip, norm)
        optimizer.step()
    return record


@torch.no_grad()
def own_evaluate(own: OwnModel, config: TrainConfig) -> float | None:
    """Mean loss on the first `train.eval_batches` validation batches; None when there are none."""
    own.model.eval()
    losses = [scalar(own.loss(own.model, b)) for b in islice(own.batches("validation"), config.train.eval_batches)]
    own.model.train()
    return float(torch.stack(losses).mean()) if losses else None
