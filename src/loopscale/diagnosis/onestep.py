"""The one-step law: how far a few optimiser steps on copies of the model move its output, over N."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.diagnosis.branches import Branch, rms
from loopscale.diagnosis.gradients import pretend_loss
from loopscale.diagnosis.growth import power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass
from loopscale.diagnosis.overloops import following
from loopscale.diagnosis.setting import Setting, at_each
from loopscale.diagnosis.stream import MIXED
from loopscale.errors import UserError, expect, foreign
from loopscale.probe.batch import call_model, first_float
from loopscale.probe.passes import seed_all

MakeLoss = Callable[[Any], Tensor]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
STEPS = 4
A_FUNCTION = "optimizer=lambda model: torch.optim.AdamW(model.parameters())"


@dataclass(frozen=True)
class OneStep:
    """|change of the output| / |output| after 1 and after `steps` optimiser steps, by N; slopes of both over log N.

    `without_gradient` names the parameters that a loss of the output gives no gradient to.
    """

    optimizer: str
    steps: int
    first: dict[int, float]
    last: dict[int, float]
    slope_first: float | None
    slope_last: float | None
    without_gradient: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def one_step_law(
    setting: Setting,
    knob: Knob | None,
    seen: Pass,
    optimizer: MakeOptimizer | None = None,
    follow: Sequence[Branch] | None = None,
) -> OneStep | None:
    """Train copies of the model for a few steps, at its own N and at N/2 and 2N where N can be set.

    A rate that holds at every N asks for slopes of about 0. Gates and mixtures of streams, a few numbers each, stay as they
    are unless the optimiser is the user's: their rate is none of eps. With `follow` the scale, which does not follow N in
    the model, is made to, in these branches of other loops as well. None when the model cannot be copied or has no
    gradient.
    """
    own = seen.loop.visits
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    silent: tuple[str, ...] = ()
    factors = None if follow is None else (lambda count: following(seen, count, follow))
    counts = sorted({max(own // 2, 2), own, 2 * own}) if knob else [own]
    for count, there in at_each(setting, knob, counts, factors):
        try:
            changes, without = _changes(there.copied(), yours(optimizer, adam(1e-3, MIXED)))
        except UserError:
            raise
        except (RuntimeError, TypeError, IndexError, ValueError):
            continue
        silent = without if count == own else silent
        if len(changes) == 2 and all(math.isfinite(value) for value in changes):
            first[count], last[count] = changes
    if not first:
        return None
    name = "Adam, rate 0.001" if optimizer is None else "yours"
    return OneStep(name, STEPS, first, last, _slope(first), _slope(last), silent)


def _slope(changes: dict[int, float]) -> float | None:
    fit = power_fit(list(changes), list(changes.values()))
    return fit[0] if fit else None


def _changes(setting: Setting, optimizer: MakeOptimizer) -> tuple[list[float], tuple[str, ...]]:
    """Give |y_k - y_0| / |y_0| after one step and after the last, and the parameters without a gradient.

    An output that starts at zero, as that of a zero-initialised readout, gives |y_k|.
    """
    outputs: list[Tensor | None] = []

    def read(step: int, output: Any) -> None:
        if step in (0, 1, STEPS):
            with torch.no_grad():
                value = first_float(_output(setting) if step else output)
            outputs.append(None if value is None else value.detach().clone())

    torch.manual_seed(0)
    without = train_a_little(setting, STEPS, optimizer, read=read)
    before, *after = outputs
    if before is None:
        return [], without
    size = rms(before) or 1.0
    return [math.nan if value is None else rms(value - before) / size for value in after], without


def train_a_little(
    setting: Setting,
    steps: int = STEPS,
    optimizer: MakeOptimizer | None = None,
    loss_of: MakeLoss | None = None,
    read: Callable[[int, Any], None] = lambda _step, _output: None,
) -> tuple[str, ...]:
    """Train the model in place; give the parameters that get no gradient.

    `optimizer` makes the user's own from the model; without it Adam with rate 0.001. `loss_of` makes a loss from the
    output; without it the model's own or a made-up one. `read(0, output)` is called with the first answer, then
    `read(step, None)` after every step. Raises `RuntimeError` when the output has no gradient, `UserError` when `loss_of`
    gives no scalar that has one.
    """
    model, batch = setting.model, setting.batch
    own = (optimizer or adam(1e-3))(model)
    silent: tuple[str, ...] = ()
    for step in range(1, steps + 1):
        own.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = _output(setting)
            loss = pretend_loss(output, batch) if loss_of is None else _scalar(loss_of(output))
            if loss is None or not loss.requires_grad:
                raise RuntimeError("the output has no gradient")
            if step == 1:
                read(0, output)
            torch.autograd.backward(loss)
        if step == 1:
            silent = tuple(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
        own.step()
        read(step, None)
    own.zero_grad(set_to_none=True)
    return silent


def yours(optimizer: MakeOptimizer | None, otherwise: MakeOptimizer) -> MakeOptimizer:
    """Give what makes the user's optimizer, checked when it does, or ours where there is none.

    It raises `UserError` where it makes no optimizer, or one of other weights than the model's.
    """
    if optimizer is None:
        return otherwise

    def make(model: nn.Module) -> torch.optim.Optimizer:
        with foreign(f"optimizer= cannot be made of the model, give {A_FUNCTION}"):
            made = optimizer(model)
            fits = hasattr(made, "step") and hasattr(made, "zero_grad")
            expect(made, fits, "an optimizer from optimizer=", A_FUNCTION)
        own, groups = {id(p) for p in model.parameters()}, getattr(made, "param_groups", None)
        if groups is not None and not any(id(p) in own for group in groups for p in group["params"]):
            raise UserError(f"optimizer= made one of other weights, and copies are trained: give {A_FUNCTION}")
        return made

    return make


def adam(rate: float, above: int = 0) -> MakeOptimizer:
    """Make Adam at a rate from a model; where any are, for weights `above` so many numbers alone."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        asked = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.Adam([p for p in asked if p.numel() > above] or asked, lr=rate)

    return make


def _output(setting: Setting) -> Any:
    """Return the model's answer; with factors on its additions through a tape, with gradients where they are enabled."""
    if not setting.factors:
        # What a model draws in its forward is the same before and after a step, as in every pass on a tape.
        seed_all(0)
        return call_model(setting.model, setting.batch, setting.extra)
    return setting.run(graph=torch.is_grad_enabled())[1]


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(
            f"loss= returned {what}: it takes the model's output and returns one number that has a gradient"
        )
    return loss
