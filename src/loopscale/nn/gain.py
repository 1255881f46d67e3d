"""The initial half of the Post-LN rules: smaller value, output and MLP weights, applied once."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import nn

from loopscale.errors import UserError
from loopscale.nn.loop import Loop
from loopscale.nn.residual import PostNormResidual

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
