"""Loop: apply one stack N times, the residual scale following N."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError, expect
from loopscale.nn.residual import HoldsScale, PostNormResidual
from loopscale.parameterization import Depth, Rule, get_rule


class Loop(nn.Module):
    """Apply `stack` `loops` times: a run-time knob, given at forward. Every residual branch inside gets its eps.

    `stack` is a module, or a `Sequential` or `ModuleList` of blocks, in which each residual branch is a `ScaledResidual`
    (or uses a `ScaledUpdate`; for the Post-LN rules a `PostNormResidual`): they get `eps = lambda / (N sqrt(m_L))` of the N
    of the call (`rule`, `strength`, `base_layers` as in `residual_scale`).

    `layers` is the number of unique layers L in the stack; an attention and an MLP branch make *one* layer. Without it,
    the children of a `Sequential` or `ModuleList` are counted. A `Loop` inside the stack counts as its own layers, and
    its branches are visited (outer loops) x (inner loops) times: that product is their N.

    Raises `UserError` when the stack is no module or has no scaled branch, when L cannot be counted, when the rule and the
    blocks disagree on pre-norm or Post-LN, when an inner loop has another rule, or when loops < 1.

    >>> from loopscale.nn import ScaledResidual
    >>> stack = nn.Sequential(ScaledResidual(nn.Linear(8, 8)))
    >>> loop = Loop(stack, loops=4)
    >>> loop.residual_scale(8)
    0.125
    """

    def __init__(
        self,
        stack: nn.Module,
        loops: int,
        rule: str | Rule = "looped",
        *,
        layers: int | None = None,
        strength: float = 1.0,
        base_layers: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(stack, nn.Module):
            raise UserError(
                f"the stack is a {type(stack).__name__} and must be a module: of blocks make nn.ModuleList(blocks) or "
                "nn.Sequential(*blocks)"
            )
        self.stack = stack
        self.loops = Depth(loops, 1).loops
        self.rule = get_rule(rule)
        self.layers = _count_layers(stack) if layers is None else Depth(1, layers).layers
        self.strength, self.base_layers = strength, base_layers
        # Visits and layers that a loop around this one adds; set by that loop at each of its calls.
        self.around: tuple[int, int] | None = None
        _check(self)
        self.residual_scale(loops)

    @property
    def depth(self) -> Depth:
        """Loops as constructed, and layers."""
        return Depth(self.loops, self.layers)

    def depth_at(self, loops: int) -> Depth:
        """Give N and L of the branches at this many loops, the loops around this one included."""
        Depth(loops, self.layers)
        outer, layers = self.around or (1, self.layers)
        return Depth(loops * outer, layers)

    def residual_scale(self, loops: int) -> float:
        """Give eps for this many loops."""
        return self.rule.residual_scale(self.depth_at(loops), self.strength, self.base_layers).value

    def forward(self, stream: Tensor, *args: Any, loops: int | None = None, **kwargs: Any) -> Any:
        """Visit the stack `loops` times (default: as constructed); extra arguments go to every visit.

        A stack that returns a tuple carries it: its elements take the place of the stream and the first extra arguments
        at the next visit (a second stream, a recurrent state, a running sum of losses), and the last tuple is returned.
        """
        if loops is None and len(args) == 1 and type(args[0]) is int:
            raise UserError(
                f"the number of loops is named: loop(x, loops={args[0]}); other arguments go to every visit"
            )
        visits = self.loops if loops is None else loops
        depth = self.depth_at(visits)
        eps, alpha = self.residual_scale(visits), self.rule.skip_scale(depth).value
        for part in _parts(self.stack):
            if isinstance(part, Loop):
                part.around = (depth.loops, depth.layers)
            else:
                part.set_scale(eps, alpha)
        carried: tuple[Any, ...] = (stream, *args)
        result: Any = stream
        for _ in range(visits):
            result, carried = _visit(self.stack, carried, kwargs)
        return result


def _visit(stack: nn.Module, carried: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Visit the stack once; give its result and the arguments of its next visit.

    A plain Sequential takes one argument, so with more of them its blocks are called one by one.
    """
    opened = isinstance(stack, nn.ModuleList) or (type(stack) is nn.Sequential and (len(carried) > 1 or kwargs))
    result: Any = None
    for block in stack.children() if opened else [stack]:
        result = block(*carried, **kwargs)
        carried = _carry(block, result, carried)
    return result, carried


def _carry(block: nn.Module, result: Any, carried: tuple[Any, ...]) -> tuple[Any, ...]:
    values = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    name = type(block).__name__
    if not values or not isinstance(values[0], Tensor):
        raise UserError(
            f"{name} returned {type(result).__name__}: a block of a loop returns the stream, or a tuple from it on"
        )
    if len(values) > len(carried):
        raise UserError(
            f"{name} returned {len(values)} values and was given {len(carried)}: a tuple is carried to the next visit, so "
            "return the stream alone (element 0, where an attention returns its weights besides), or give the loop a "
            "first value for each, loop(x, state)"
        )
    return (*values, *carried[len(values) :])


def _parts(module: nn.Module) -> Iterator[HoldsScale | Loop]:
    """Yield the scaled branches and inner loops below a module; an inner loop sets what is inside it."""
    if isinstance(module, Loop):
        yield module
        return
    if isinstance(module, HoldsScale):
        yield module
    for child in module.children():
        yield from _parts(child)


def _check(loop: Loop) -> None:
    parts, rule = list(_parts(loop.stack)), loop.rule
    if not parts:
        raise UserError(
            "the stack has no PostNormResidual: wrap each residual branch, PostNormResidual(branch, norm)"
            if rule.norm == "post"
            else "the stack has no ScaledResidual and no ScaledUpdate: wrap each residual branch, ScaledResidual(branch, "
            "norm), or add it as x + self.eps(branch(norm(x))), with self.eps = ScaledUpdate() in the block"
        )
    for part in parts:
        if isinstance(part, Loop):
            if part.rule != rule:
                raise UserError(
                    f"the inner loop has rule {part.rule.name!r} and the outer {rule.name!r}: give both the same"
                )
        elif isinstance(part, PostNormResidual) != (rule.norm == "post"):
            raise UserError(
                f"rule {rule.name!r} is for Post-LN networks: use PostNormResidual, or a pre-norm rule such as 'looped'"
                if rule.norm == "post"
                else f"rule {rule.name!r} is for pre-norm networks: a PostNormResidual takes 'deeploop' or 'deepnorm'"
            )


def _count_layers(stack: nn.Module) -> int:
    if isinstance(stack, Loop):
        return stack.layers
    if isinstance(stack, (nn.Sequential, nn.ModuleList)):
        return sum(child.layers if isinstance(child, Loop) else 1 for child in stack) or 1
    if isinstance(stack, HoldsScale):
        return 1
    raise UserError("cannot count the layers of the stack: pass layers= (attention and MLP together are one layer)")


QUERIES_AND_KEYS = ("*query*", "*key*", "*q_proj*", "*k_proj*", "*qk*")


def apply_branch_gain(loop: Loop, but: Sequence[str] = QUERIES_AND_KEYS) -> list[str]:
    """Multiply the branch matrices of a Post-LN loop by beta = (8 N L)^-1/2 (deeploop; deepnorm -1/4); give their names.

    `but` lists patterns of names to leave out: queries and keys keep their initial size. A matrix that holds queries, keys
    and values at once is shrunk as a whole; split it if that matters. N is that of the loop's construction. Call it once,
    after initialisation and before training.

    Raises `UserError` for a pre-norm rule, and when no matrix is left.

    >>> stack = nn.Sequential(PostNormResidual(nn.Linear(8, 8), nn.LayerNorm(8)))
    >>> apply_branch_gain(Loop(stack, loops=8, rule="deeploop"))
    ['0.branch.weight']

    Source: arXiv:2607.13491 (deeploop), arXiv:2203.00555 (deepnorm).
    """
    expect(loop, isinstance(loop, Loop), "a Loop", "give the Loop inside the model, such as model.core")
    if loop.rule.norm == "pre" and not loop.rule.keeps_start:
        raise UserError(
            f"rule {loop.rule.name!r} shrinks output projections alone: multiply their initial weights by "
            "loop.rule.branch_gain(depth).value, and leave this call out"
        )
    if loop.rule.norm != "post":
        raise UserError(
            f"rule {loop.rule.name!r} is for pre-norm networks and has no initial gain: leave this call out"
        )
    gain = loop.rule.branch_gain(loop.depth_at(loop.loops)).value
    shrunk: dict[int, str] = {}
    for prefix, block in loop.stack.named_modules():
        if isinstance(block, PostNormResidual) and isinstance(block.branch, nn.Module):
            for name, parameter in block.branch.named_parameters():
                full = f"{prefix}.branch.{name}".strip(".")
                if parameter.ndim >= 2 and not any(fnmatch(full, pattern) for pattern in but):
                    shrunk.setdefault(id(parameter), full)
    if not shrunk:
        raise UserError(f"no branch matrix is left after leaving out {', '.join(but)}: change but=")
    with torch.no_grad():
        for parameter in loop.stack.parameters():
            if id(parameter) in shrunk:
                parameter.mul_(gain)
    return list(shrunk.values())
