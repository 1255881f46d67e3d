"""LoopedCore: the module that owns the loop. It is the unit to shard: gathered once a step, whatever N.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.nn.past import Sight, Slot, slot_of
from loopscale.nn.recompute import Recompute
from loopscale.nn.residual import Scale


class LoopedCore(nn.Module):
    """L blocks, visited N times: `for visit: for block: x = block(x, rotation, scale, skip)`.

    `loops`, `scale` (eps) and `skip` are arguments of forward, so N is a run-time knob. Blocks are children "0", "1", ...:
    a parameter of the second is "core.1.mlp.down.weight" in a model that calls this "core". `gradient_visits` = k lets
    the gradient through the last k visits only (None: all); the stream's entry is then reached along the skip path.
    `recompute` is an attribute that may be changed between steps; it changes memory and time, not values.

    Raises `UserError` for gradient_visits below 1.
    """

    def __init__(self, blocks: Iterable[nn.Module], gradient_visits: int | None = None) -> None:
        super().__init__()
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)
        if gradient_visits is not None and gradient_visits < 1:
            raise UserError(f"gradient_visits must be at least 1, or left out for all visits, got {gradient_visits!r}")
        self.gradient_visits = gradient_visits
        self.recompute = Recompute()
        self.body: Callable[..., Tensor] = run_block

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, index: int) -> Any:
        return list(self._modules.values())[index]

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Tensor,
        scale: Scale,
        skip: Scale,
        loops: int,
        kept: list[Tensor] | None = None,
        sight: Sight | None = None,
    ) -> Tensor:
        """The stream after `loops` visits; `kept` gets the stream after each (and nothing is recomputed then)."""

        def visit(x: Tensor, number: int) -> Tensor:
            for layer, block in enumerate(self):
                x = self.step(block, x, rotation, scale, skip, slot_of(sight, "core", number, layer))
            if kept is not None:
                kept.append(x)
            return x

        free = loops if self.gradient_visits is None else self.gradient_visits
        silent = max(0, loops - free) if torch.is_grad_enabled() else 0
        if silent:
            with torch.no_grad():
                reached = Recompute().run(visit, x_BTD, 0, silent)
            x_BTD = straight_through(reached, x_BTD)
        recompute = self.recompute if kept is None else Recompute()
        return recompute.run(visit, x_BTD, silent, loops)

    def step(
        self, block: nn.Module, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None
    ) -> Tensor:
        """One block at one visit. With a slot it is not compiled: a cache grows at every call."""
        return (self.body if slot is None else run_block)(block, x, rotation, scale, skip, slot)

    def compile_body(self, **options: Any) -> None:
        """Compile one block, which then serves all layers and every number of loops; `options` go to `torch.compile`.

        Give `scale` and `skip` as 0-dim tensors from then on: a float would be part of the graph.
        """
        self.body = torch.compile(run_block, **{"dynamic": False, **options})

    @property
    def compiled(self) -> bool:
        """Whether `compile_body` was called."""
        return self.body is not run_block


def run_block(
    block: nn.Module, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None = None
) -> Tensor:
    """The body of the loop: one block, one visit. A function of the block, so that one graph serves all layers."""
    out: Tensor = block(x, rotation, scale, skip, slot)
    return out


def straight_through(value: Tensor, path: Tensor) -> Tensor:
    """`value` in the forward pass, the identity of `path` in the backward pass."""
    # Adding an exact zero keeps the value bitwise (up to the sign of a zero).
    return value.detach() + (path - path.detach())
