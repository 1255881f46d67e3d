"""The scaled residual around any branch: pre-norm, Post-LN, and the bare scale for a forward of your own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError

Scale = float | Tensor


def add_scaled(x: Tensor, scale: Scale, update: Tensor) -> Tensor:
    """Give `x + scale * update`, in one pass over memory where both have one dtype; the result has the dtype of `x`."""
    if update.dtype != x.dtype:
        return x + scale * update
    if isinstance(scale, Tensor):  # rounds once, as below: a member of a stack gets the sum that it gets alone
        return torch.addcmul(x, scale, update)
    return torch.add(x, update, alpha=scale)


class HoldsScale(nn.Module):
    """What a `Loop` sets at every call: `scale` (eps), on the branch, and `skip` (alpha), on the stream.

    Both are 0-dim tensors, not Python numbers: a compiled graph then serves every number of loops. They are not in the
    state dict: they follow from the rule. They survive deepcopy, `.to(bfloat16)`, `.half()` (fp32, in fp64 models fp64)
    and meta -> `to_empty`.
    """

    scale: Tensor
    skip: Tensor

    def __init__(self, scale: float = 1.0, skip: float = 1.0) -> None:
        super().__init__()
        for name, number in (("scale", scale), ("skip", skip)):
            if isinstance(number, str) or number < 0:
                raise UserError(f"{name} must be a number of at least 0, got {number!r}")
        self._numbers = (float(scale), float(skip))
        self._told = True  # someone chose the scale; False: it is 1 because nobody did
        self.register_buffer("scale", torch.tensor(self._numbers[0]), persistent=False)
        self.register_buffer("skip", torch.tensor(self._numbers[1]), persistent=False)

    def set_scale(self, scale: float, skip: float = 1.0) -> None:
        """Replace both. New tensors, not an in-place change: a graph already recorded keeps its own."""
        self._numbers, self._told = (float(scale), float(skip)), True
        self._place()

    def _place(self) -> None:
        device, dtype = self.scale.device, torch.promote_types(self.scale.dtype, torch.float32)
        self.scale = torch.tensor(self._numbers[0], device=device, dtype=dtype)
        self.skip = torch.tensor(self._numbers[1], device=device, dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HoldsScale:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `.half()` would round a small eps to 0, and `to_empty` leaves whatever the memory held.
        self._place()
        return self


class ScaledUpdate(HoldsScale):
    """`eps * update`: the scale alone, for a forward that you write yourself: `x = x + self.eps(branch(norm(x)))`.

    The `Loop` around it sets eps; without a `Loop` and without `scale=` it is 1, and the first call warns.

    >>> eps = ScaledUpdate(scale=0.5)
    >>> float(eps(torch.tensor(3.0)))
    1.5
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__(1.0 if scale is None else scale)
        self._told = scale is not None

    def forward(self, update: Tensor) -> Tensor:
        """Scale an update of any shape; the dtype stays."""
        if not self._told and not torch.compiler.is_compiling():
            self._told = True
            warnings.warn(
                "a ScaledUpdate is called outside a Loop and without scale=, so its eps is 1: put the block into a Loop, "
                "or give it scale=residual_scale(Depth(loops=N, layers=L))",
                stacklevel=2,
            )
        return self.scale * update


class ScaledResidual(HoldsScale):
    """`x + scale * branch(norm(x))`, with the scale set once or by the `Loop` around it.

    `branch` is any module whose output has the shape of `x`; `norm` is applied to the branch's input (None: no norm).
    A branch that returns a tuple adds its first element; the others are returned behind the stream. Write `f`, not
    `x + f(x)`: a branch with a skip of its own would double the stream.

    Raises `UserError` at the first call when the branch changes the shape or returns no tensor.

    >>> block = ScaledResidual(nn.Linear(8, 8), scale=0.0)
    >>> x = torch.randn(2, 8)
    >>> torch.equal(block(x), x)
    True
    """

    def __init__(self, branch: Callable[..., Any], norm: nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__(scale)
        _check_parts(branch, norm)
        self.branch = branch
        self.norm = norm

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add the scaled branch to `x` of any shape, in the stream's dtype; extra arguments go to the branch."""
        result = self.branch(x if self.norm is None else self.norm(x), *args, **kwargs)
        update, rest = split_update(self.branch, result, x)
        added = (x + self.scale * update).to(x.dtype)
        return (added, *rest) if rest else added


class PostNormResidual(HoldsScale):
    """Post-LN: `norm(skip * x + scale * branch(x))`, for the rules `deepnorm` and `deeploop`.

    Inside a `Loop` with such a rule the loop sets skip = alpha = (2 N L)^(1/2) (deeploop) at every call; the other half of
    the rule, the smaller initial weights, is `apply_branch_gain(loop)`, once.

    Raises `UserError` at the first call when the branch changes the shape or returns no tensor.

    >>> block = PostNormResidual(nn.Linear(8, 8), nn.LayerNorm(8), skip=4.0)
    >>> block(torch.randn(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, branch: Callable[..., Any], norm: nn.Module, scale: float = 1.0, skip: float = 1.0) -> None:
        super().__init__(scale, skip)
        _check_parts(branch, norm)
        self.branch = branch
        self.norm = norm

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add the branch to `x` of any shape, then norm; extra arguments go to the branch."""
        update, rest = split_update(self.branch, self.branch(x, *args, **kwargs), x)
        normed = self.norm(self.skip * x + self.scale * update).to(x.dtype)
        return (normed, *rest) if rest else normed


def _check_parts(branch: Any, norm: Any) -> None:
    """Raise `UserError` for a branch that is missing, or a branch or norm that is a class or cannot be called."""
    for name, part, such in (("branch", branch, "nn.Linear(width, width)"), ("norm", norm, "nn.LayerNorm(width)")):
        if (part is not None or name == "branch") and (isinstance(part, type) or not callable(part)):
            raise UserError(f"{name} must be a module, such as {such}, got {part!r}")


def split_update(branch: Any, result: Any, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """Split a branch's result into the update and what follows it; raise `UserError` when the update does not fit."""
    update, rest = (result[0], tuple(result[1:])) if isinstance(result, (tuple, list)) and result else (result, ())
    name = getattr(branch, "__name__", type(branch).__name__)
    if not isinstance(update, Tensor):
        raise UserError(
            f"the branch {name} returned {type(update).__name__}: return the tensor to add, or a tuple that begins with it"
        )
    if update.shape != x.shape:
        raise UserError(
            f"the branch {name} turned {tuple(x.shape)} into {tuple(update.shape)}: "
            "a residual branch must keep the shape of its stream"
        )
    return update, rest
