"""A compiled body is used only after one step of it gave eager's loss and eager's gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loopscale.errors import UserError, expect, first_line
from loopscale.nn.transformer import LoopedTransformer

# Relative to the largest gradient of each parameter; fp32 rounding over tens of visits stays below 1e-4.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Comparison:
    """Largest difference of a gradient, relative to that parameter's largest entry; where; and that of the loss."""

    gradient: float
    parameter: str
    loss: float


def compile_checked(
    model: LoopedTransformer,
    tokens_BT: Tensor,
    loops: int | None = None,
    autocast: torch.dtype | None = None,
    **options: Any,
) -> Comparison:
    """Compile the body of `model`'s loop, after comparing one step's loss and gradients with eager on `tokens_BT`.

    Two of torch's own loop forms give a right loss and wrong gradients; this would notice. `options` go to
    `torch.compile`. No gradients are left behind. Compilation takes seconds, and the graph serves every N.

    Raises `UserError` when a gradient or the loss differs, or when this machine cannot compile; the model is eager then.

    >>> from loopscale.nn import ModelConfig
    >>> model = LoopedTransformer(ModelConfig(vocab_size=17, width=32))
    >>> compile_checked(model, torch.zeros(1, 5, dtype=torch.long), backend="eager").gradient < 1e-3
    True
    """
    fix = "for a loop of yours, give torch.compile its body"
    expect(model, isinstance(model, LoopedTransformer), "a LoopedTransformer", fix)
    eager = _step(model, tokens_BT, loops, autocast)
    before = model.core.body
    model.core.compile_body(**options)
    try:
        compiled = _step(model, tokens_BT, loops, autocast)
    except UserError:
        raise
    except Exception as problem:  # whatever a compiler can throw
        model.core.body = before
        why = first_line(problem)
        raise UserError(f"the loop's body does not compile here ({why}): train without train.compile") from problem
    found = _compare(eager, compiled)
    limit = TOLERANCE[torch.float32 if autocast is None else torch.bfloat16]
    # Written so that a NaN is refused too.
    if not (found.gradient <= limit and found.loss <= limit):
        model.core.body = before
        raise UserError(
            f"compiled and eager differ: the gradient of {found.parameter!r} by {found.gradient:.2g} of its largest entry, "
            f"the loss by {found.loss:.2g}, allowed is {limit:g}: train without train.compile, or with another torch"
        )
    return found


Step = tuple[Tensor, dict[str, Tensor]]


def _step(model: LoopedTransformer, tokens_BT: Tensor, loops: int | None, autocast: torch.dtype | None) -> Step:
    device = tokens_BT.device.type
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        logits_BTV = model(tokens_BT, loops=loops)
    loss = F.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), tokens_BT[:, 1:].flatten())
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), {name: g for name, g in zip(named, gradients, strict=True) if g is not None}


def _compare(eager: Step, compiled: Step) -> Comparison:
    (loss, expected), (other, got) = eager, compiled
    differences = {name: _relative(expected[name], got.get(name)) for name in expected}
    worst = max(
        differences, key=lambda name: float("inf") if differences[name] != differences[name] else differences[name]
    )
    return Comparison(differences[worst], worst, float((loss - other).abs() / loss.abs().clamp(min=1e-6)))


def _relative(expected: Tensor, got: Tensor | None) -> float:
    if got is None:
        return float("inf")
    scale = expected.float().abs().max().clamp(min=1e-12)
    return float((got.float() - expected.float()).abs().max() / scale)
