"""The visits of a core that are more than two `for`s: another order, truncated gradients, recomputation, early exit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loopscale.errors import UserError, nearest, spelt

if TYPE_CHECKING:
    from loopscale.nn.past import Place
    from loopscale.nn.transformer import LoopedCore, Pace


@spelt
@dataclass(frozen=True)
class Recompute:
    """Trade time for memory: `every` visits form a segment of which only the entering stream is kept.

    `every` = 0 keeps all activations. With `every` >= 1 a step keeps N / every streams and the inside of one segment, and
    computes every visit once more. `keep` limits the streams kept at a time: memory is then flat in N, and a visit is
    computed r more times, r the smallest with C(keep + r, r) >= N / every (keep = 8: r = 2 up to N = 45, r = 3 up to 165).
    The split is that of binomial checkpointing (Griewank and Walther, "revolve").

    Raises `UserError` for a negative `every`, or a `keep` below 1.

    >>> Recompute(every=1, keep=8).extra_visits(32)
    55
    """

    every: int = 0
    keep: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 0:
            raise UserError(f"recompute.every must be 0 (keep everything) or a number of visits, got {self.every!r}")
        if self.keep is not None and (isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1):
            raise UserError(f"recompute.keep must be at least 1 stream, or left out for no limit, got {self.keep!r}")

    def run(self, visit: Visit, x: Tensor, start: int, stop: int) -> Tensor:
        """Apply visits start .. stop-1 to `x`; without gradient nothing is kept anyway."""
        if not self.every or not torch.is_grad_enabled():
            return _straight(visit, x, start, stop)
        cuts = [*range(start, stop, self.every), stop]
        return self._tree(visit, x, cuts, len(cuts) if self.keep is None else self.keep)

    def _tree(self, visit: Visit, x: Tensor, cuts: list[int], keep: int) -> Tensor:
        count = len(cuts) - 1
        if count == 1:
            return _kept_entry(partial(_straight, visit, start=cuts[0], stop=cuts[1]), x)
        left = _left(count, keep)
        part = partial(self._tree, visit, cuts=cuts[: left + 1], keep=keep)
        # A left part of several segments is forgotten; when its turn comes it is run again, with the streams free by then.
        x = part(x) if left == 1 else _kept_entry(part, x)
        return self._tree(visit, x, cuts[left:], max(1, keep - 1))

    def extra_visits(self, loops: int) -> int:
        """Say how many visits the backward pass computes again, of `loops` in the forward pass."""
        if not self.every:
            return 0
        segments = [min(self.every, loops - start) for start in range(0, loops, self.every)]
        return _extra(segments, len(segments) + 1 if self.keep is None else self.keep)


def _straight(visit: Visit, x: Tensor, start: int, stop: int) -> Tensor:
    for number in range(start, stop):
        x = visit(x, number)
    return x


def _kept_entry(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # No random state to restore: nothing in the core draws numbers.
    result: Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
    return result


def _left(count: int, keep: int) -> int:
    """Return segments in the part that is run again: as few as the number of repeats allows."""
    if keep >= count:
        return 1
    repeats = 1
    while comb(keep + repeats, repeats) < count:
        repeats += 1
    return min(count - 1, max(1, count - comb(keep - 1 + repeats, repeats)))


def _extra(segments: list[int], keep: int) -> int:
    if len(segments) == 1:
        return segments[0]
    left = _left(len(segments), keep)
    # Running a left part again ends before its last segment: nothing of that one is kept outside of it.
    again = sum(segments[: left - 1])
    return again + _extra(segments[:left], keep) + _extra(segments[left:], max(1, keep - 1))


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
