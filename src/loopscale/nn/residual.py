"""The scaled residual: x <- skip * x + scale * branch(norm(x)), around any branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Scale = float | Tensor


def add_scaled(x: Tensor, scale: Scale, update: Tensor) -> Tensor:
    """`x + scale * update`, in one pass over memory when the scale is a number; the result has the dtype of `x`."""
    if isinstance(scale, Tensor) or update.dtype != x.dtype:
        return x + scale * update
    return torch.add(x, update, alpha=scale)


class ScaledResidual(nn.Module):
    """`x + scale * branch(norm(x))`, with the scale handed in at every call or set once.

    `branch` is any module whose output has the shape of `x`; `norm` is applied to the branch's input (None: no norm).
    `scale` is kept as a 0-dim buffer, not as a Python float: a compiled graph then serves every number of loops.
    Inside a `Loop` the loop sets it; alone, use `set_scale` or pass `scale=` to `residual_scale`'s value.

    Raises `ValueError` at the first call when the branch changes the shape.

    >>> block = ScaledResidual(nn.Linear(8, 8), scale=0.0)
    >>> x = torch.randn(2, 8)
    >>> torch.equal(block(x), x)
    True
    """

    scale: Tensor

    def __init__(self, branch: Callable[..., Tensor], norm: nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm
        self.register_buffer("scale", torch.tensor(float(scale)), persistent=False)

    def set_scale(self, scale: float) -> None:
        """Replace the scale. A new tensor, not an in-place change: a graph already recorded keeps its own."""
        self.scale = torch.tensor(float(scale), device=self.scale.device, dtype=self.scale.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x` of any shape, in the stream's dtype; extra arguments go to the branch."""
        update = self.branch(x if self.norm is None else self.norm(x), *args, **kwargs)
        if update.shape != x.shape:
            raise ValueError(
                f"the branch {type(self.branch).__name__} turned {tuple(x.shape)} into {tuple(update.shape)}: "
                "a residual branch must keep the shape of its stream"
            )
        return x + self.scale * update
