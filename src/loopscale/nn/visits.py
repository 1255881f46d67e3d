"""The visits of a core that are more than two `for`s: another order, truncated gradients, recomputation, early exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loopscale.errors import UserError, nearest
from loopscale.nn.recompute import Recompute

if TYPE_CHECKING:
    from loopscale.nn.past import Place
    from loopscale.nn.transformer import LoopedCore, Pace

Group = list[tuple[int, nn.Module]]
Visit = Callable[[Tensor, int], Tensor]
STACK = "stack"  # the plain order: all layers, N times
# Other orders cut the numbered layers into groups; the groups take turns, and each is visited N times.
ORDERS: dict[str, Callable[[Group], list[Group]]] = {"layer": lambda layers: [[layer] for layer in layers]}


def check_options(order: str, gradient_visits: int | None) -> None:
    """Raise `UserError` for an unknown order, or gradient_visits below 1."""
    if order not in (STACK, *ORDERS):
        raise UserError(f"order has no kind {order!r}: {nearest(str(order), (STACK, *ORDERS))}")
    if gradient_visits is not None and gradient_visits < 1:
        raise UserError(f"gradient_visits must be at least 1, or left out for all visits, got {gradient_visits!r}")


def visit_by_options(
    core: LoopedCore, x: Tensor, at: tuple[Place, Pace], loops: int, kept: list[Tensor] | None, exit_below: float | None
) -> Tensor:
    """Do what `LoopedCore.forward` does, in the core's order, with the gradient and the memory that its options allow."""
    (place, pace), source = at, core.source(x)
    layers: Group = list(enumerate(core))
    groups = [layers] if core.order == STACK else ORDERS[core.order](layers)
    steps = pace.loops * len(groups)
    for turn, group in enumerate(groups):

        def visit(x: Tensor, number: int, group: Group = group, first: int = turn * pace.loops) -> Tensor:
            x = core.enter(x, source, first + number, steps)
            for layer, block in group:
                x = core.step(block, x, place, pace, ("core", number, layer))
            if kept is not None:
                kept.append(x)
            return x

        if exit_below is not None:
            x = _until_still(visit, x, loops, exit_below)
        else:
            x = _repeat(visit, x, loops, core.gradient_visits, Recompute() if kept is not None else core.recompute)
    return x


def _repeat(visit: Visit, x: Tensor, loops: int, gradient_visits: int | None, recompute: Recompute) -> Tensor:
    free = loops if gradient_visits is None else gradient_visits
    silent = max(0, loops - free) if torch.is_grad_enabled() else 0
    if silent:
        with torch.no_grad():
            reached = Recompute().run(visit, x, 0, silent)
        x = straight_through(reached, x)
    return recompute.run(visit, x, silent, loops)


def straight_through(value: Tensor, path: Tensor) -> Tensor:
    """Give `value` in the forward pass, the identity of `path` in the backward pass."""
    # Adding an exact zero keeps the value bitwise (up to the sign of a zero).
    return value.detach() + (path - path.detach())


def _until_still(visit: Visit, x: Tensor, loops: int, below: float) -> Tensor:
    for number in range(loops):
        before, x = x, visit(x, number)
        change = (x - before).float().flatten(1).norm(dim=1) / before.float().flatten(1).norm(dim=1)
        if bool((change < below).all()):
            break
    return x
