"""Where the norms of a layer stand: a placement is a function of stream, branch and norms, and joins by adding a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from loopscale.nn.residual import Scale, add_scaled

Branch = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Branch, nn.Module, nn.Module | None, Scale, Scale], Tensor]


@dataclass(frozen=True)
class Placement:
    """`step(x, branch, norm, after, scale, skip)` is one residual step; `after`: it needs a second norm."""

    name: str
    step: Step
    after: bool = False


def pre(x: Tensor, branch: Branch, norm: nn.Module, after: nn.Module | None, scale: Scale, skip: Scale) -> Tensor:
    """`x + scale * f(norm(x))`: the stream is never normed; the paper's setting."""
    return add_scaled(x, scale, branch(norm(x)))


def sandwich(x: Tensor, branch: Branch, norm: nn.Module, after: nn.Module | None, scale: Scale, skip: Scale) -> Tensor:
    """`x + scale * norm'(f(norm(x)))`: every update has RMS 1 before its scale, whatever the weights grow to."""
    assert after is not None
    return add_scaled(x, scale, after(branch(norm(x))))


def post(x: Tensor, branch: Branch, norm: nn.Module, after: nn.Module | None, scale: Scale, skip: Scale) -> Tensor:
    """`norm(skip * x + scale * f(x))`: the stream is normed at every step, so eps governs the size of updates only."""
    normed: Tensor = norm(skip * x + scale * branch(x))
    return normed


_ROWS = (Placement("pre", pre), Placement("sandwich", sandwich, after=True), Placement("post", post))
PLACEMENTS = {placement.name: placement for placement in _ROWS}
