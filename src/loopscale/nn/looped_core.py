"""LoopedCore: the module that owns the loop. It is the unit to shard: gathered once a step, whatever N.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loopscale.errors import UserError, nearest
from loopscale.nn.past import Sight, Slot, slot_of
from loopscale.nn.recompute import Recompute
from loopscale.nn.residual import Scale, add_scaled

Group = list[tuple[int, nn.Module]]
# An order cuts the numbered layers into groups; the groups take turns, and each is visited N times.
ORDERS: dict[str, Callable[[Group], list[Group]]] = {
    "stack": lambda layers: [layers],
    "layer": lambda layers: [[layer] for layer in layers],
}


class Pace(NamedTuple):
    """The numbers that follow N: eps, the skip scale, and how many visits make unit time (an injection's step is 1/that).

    Tensors, when the body is compiled: a float would be part of the graph, and another N another graph.
    """

    scale: Scale
    skip: Scale = 1.0
    loops: int = 1


class LoopedCore(nn.Module):
    """L blocks, visited N times: `for visit: for block: x = block(x, rotation, scale, skip)`.

    N and its `pace` are arguments of forward, so N is a run-time knob. Blocks are children "0", "1", ...: a parameter of
    the second is "core.1.mlp.down.weight" in a model that calls this "core". `order` is "stack" (the stack, N times) or
    "layer" (each layer N times, then the next). `injection` is a module with `source(entry)` and `forward(x, source,
    step)`. `visit_rows` vectors, zero at first, are spread over unit time and added in steps. `gradient_visits` = k lets
    the gradient through the last k visits only (None: all); the stream's entry is then reached along the skip path.
    `recompute` may be changed between steps; it changes memory and time, not values.

    Raises `UserError` for an unknown order, or gradient_visits below 1.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        order: str = "stack",
        injection: nn.Module | None = None,
        visit_rows: Tensor | None = None,
        gradient_visits: int | None = None,
    ) -> None:
        super().__init__()
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)
        if order not in ORDERS:
            raise UserError(f"order has no kind {order!r}: {nearest(str(order), ORDERS)}")
        if gradient_visits is not None and gradient_visits < 1:
            raise UserError(f"gradient_visits must be at least 1, or left out for all visits, got {gradient_visits!r}")
        self.order, self.gradient_visits = order, gradient_visits
        self.injection: Any = injection
        self.visit_embedding = None if visit_rows is None else nn.Parameter(visit_rows)
        self.recompute = Recompute()
        self.body: Callable[..., Tensor] = run_block

    @property
    def blocks(self) -> list[Any]:
        """The layers, in order."""
        return [module for name, module in self._modules.items() if name.isdigit()]

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.blocks)

    def __getitem__(self, index: int) -> Any:
        return self.blocks[index]

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Tensor,
        pace: Pace,
        loops: int,
        kept: list[Tensor] | None = None,
        sight: Sight | None = None,
        exit_below: float | None = None,
    ) -> Tensor:
        """The stream after `loops` visits; `kept` gets the stream after each visit (and nothing is recomputed then).

        `exit_below`: end early, once a visit changes the stream of every sequence by less than this fraction of its RMS.
        """
        source = None if self.injection is None else self.injection.source(x_BTD)
        groups = ORDERS[self.order](list(enumerate(self.blocks)))
        steps = pace.loops * len(groups)
        for turn, group in enumerate(groups):

            def visit(x: Tensor, number: int, group: Group = group, first: int = turn * pace.loops) -> Tensor:
                x = self._entered(x, source, first + number, steps)
                for layer, block in group:
                    x = self.step(block, x, rotation, pace, slot_of(sight, "core", number, layer))
                if kept is not None:
                    kept.append(x)
                return x

            x_BTD = self._repeat(visit, x_BTD, loops, exit_below, kept is None)
        return x_BTD

    def _entered(self, x: Tensor, source: Tensor | None, number: int, steps: int) -> Tensor:
        """What comes before the layers in a visit: the injection and the visit's own vector, in steps of unit time."""
        if self.injection is not None:
            x = self.injection(x, source, 1 / steps)
        if self.visit_embedding is not None:
            rows = self.visit_embedding.shape[0]
            x = add_scaled(x, 1 / steps, self.visit_embedding[min(number * rows // steps, rows - 1)].to(x.dtype))
        return x

    def _repeat(
        self, visit: Callable[[Tensor, int], Tensor], x: Tensor, loops: int, exit_below: float | None, forget: bool
    ) -> Tensor:
        if exit_below is not None:
            return _until_still(visit, x, loops, exit_below)
        free = loops if self.gradient_visits is None else self.gradient_visits
        silent = max(0, loops - free) if torch.is_grad_enabled() else 0
        if silent:
            with torch.no_grad():
                reached = Recompute().run(visit, x, 0, silent)
            x = straight_through(reached, x)
        recompute = self.recompute if forget else Recompute()
        return recompute.run(visit, x, silent, loops)

    def step(self, block: nn.Module, x: Tensor, rotation: Tensor, pace: Pace, slot: Slot | None) -> Tensor:
        """One block at one visit. With a slot it is not compiled: a cache grows at every call."""
        return (self.body if slot is None else run_block)(block, x, rotation, pace.scale, pace.skip, slot)

    def compile_body(self, **options: Any) -> None:
        """Compile one block, which then serves all layers and every number of loops; `options` go to `torch.compile`."""
        self.body = torch.compile(run_block, **{"dynamic": False, **options})

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Run without compilation inside: hooks on modules fire only then."""
        body, self.body = self.body, run_block
        try:
            yield
        finally:
            self.body = body

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


def _until_still(visit: Callable[[Tensor, int], Tensor], x: Tensor, loops: int, below: float) -> Tensor:
    for number in range(loops):
        before, x = x, visit(x, number)
        change = (x - before).float().flatten(1).norm(dim=1) / before.float().flatten(1).norm(dim=1)
        if bool((change < below).all()):
            break
    return x
