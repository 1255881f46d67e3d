"""Train a user's own model in memory: the optimizer groups, schedule and divergence of the house model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from loopscale.optim import build_optimizer, schedule
from loopscale.parameterization import Depth, Width
from loopscale.train.config import TrainConfig
from loopscale.train.divergence import Divergence
from loopscale.train.fit import Fit, thinned
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
    watch, losses, stopped = Divergence(), [], False
    own.model.train()
    for index, batch in enumerate(islice(own.batches("train"), steps)):
        record = _step(own, optimizer, batch, config, index, multiplier(index))
        losses.append(record.loss)
        if watch.observe(record):
            break
        stopped = index + 1 < steps and stop is not None and stop(record)
        if stopped:
            break
    diverged_at = watch.at if stopped else watch.verdict()
    val_loss = _evaluate(own, config) if diverged_at is None and not stopped else None
    if val_loss is not None and not math.isfinite(val_loss):
        val_loss, diverged_at = None, len(losses)
    seconds = time.perf_counter() - began
    return Fit(val_loss, diverged_at, thinned(losses), [], [], seconds, len(losses), stopped, watch.smoothed)


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


def _step(
    own: OwnModel, optimizer: torch.optim.Optimizer, batch: Any, config: TrainConfig, index: int, rate: float
) -> StepRecord:
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
def _evaluate(own: OwnModel, config: TrainConfig) -> float | None:
    own.model.eval()
    losses = [scalar(own.loss(own.model, b)) for b in islice(own.batches("validation"), config.train.eval_batches)]
    own.model.train()
    return float(torch.stack(losses).mean()) if losses else None
