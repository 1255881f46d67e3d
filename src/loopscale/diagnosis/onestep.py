"""A few optimiser steps on a model: how far they move its output, and what zero-initialised branches become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.gradients import pretend_loss
from loopscale.diagnosis.setting import Setting
from loopscale.errors import UserError
from loopscale.probe.batch import call_model, first_float

MakeLoss = Callable[[Any], Tensor]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def train_a_little(
    setting: Setting,
    steps: int = 4,
    lr: float = 1e-3,
    optimizer: MakeOptimizer | None = None,
    report_at: Sequence[int] = (),
    loss_of: MakeLoss | None = None,
    silent: list[str] | None = None,
) -> dict[int, float]:
    """Train the model in place; give the relative change |y_k - y_0| / |y_0| of the output after the steps `report_at`.

    An output that starts at zero, as that of a zero-initialised readout, gives |y_k|.

    `optimizer` makes the user's own from the model; without it Adam with rate `lr`. `loss_of` makes a loss from the output;
    without it the model's own or a made-up one. `silent` is filled with the parameters that get
    no gradient. Raises `RuntimeError` when the output has no gradient, `UserError` when
    `loss_of` gives no scalar that has one.
    """
    model, batch = setting.model, setting.batch
    own = optimizer(model) if optimizer else torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    changes: dict[int, float] = {}
    before = None
    for step in range(1, steps + 1):
        own.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = _output(setting)
            loss = pretend_loss(output, batch) if loss_of is None else _scalar(loss_of(output))
            if loss is None or not loss.requires_grad:
                raise RuntimeError("the output has no gradient")
            value = first_float(output)
            before = value.detach().clone() if before is None and value is not None else before
            torch.autograd.backward(loss)
        if silent is not None and step == 1:
            silent += [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        own.step()
        if step in report_at and before is not None:
            with torch.no_grad():
                after = first_float(_output(setting))
            changes[step] = rms(after - before) / (rms(before) or 1.0) if after is not None else float("nan")
    own.zero_grad(set_to_none=True)
    return changes


def _output(setting: Setting) -> Any:
    """Return the model's answer; with factors on its additions through a tape, with gradients where they are enabled."""
    if not setting.factors:
        return call_model(setting.model, setting.batch, setting.extra)
    return setting.run(graph=torch.is_grad_enabled())[1]


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(
            f"loss= returned {what}: it takes the model's output and returns one number that has a gradient"
        )
    return loss
