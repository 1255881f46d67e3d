"""Loop: apply one stack N times, the residual scale following N."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.nn.residual import ScaledResidual
from loopscale.parameterization import Depth, Rule, get_rule


class Loop(nn.Module):
    """Apply `stack` (a module of `ScaledResidual` branches) `loops` times: a run-time knob, given at forward.

    `layers` is the number of unique layers L in the stack; an attention and an MLP branch make *one* layer. Without it,
    the children of an `nn.Sequential` or `nn.ModuleList` are counted. Every `ScaledResidual` inside gets
    `eps = lambda / (N sqrt(m_L))` of the N of the call (`rule`, `strength`, `base_layers` as in `residual_scale`).

    Raises `UserError` when the stack holds no `ScaledResidual`, when L cannot be counted, when a Post-LN rule is asked
    for (its skip scale is not in `ScaledResidual`), or when loops < 1.

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
        self.stack = stack
        self.loops = Depth(loops, 1).loops
        self.rule = get_rule(rule)
        self.layers = _count_layers(stack) if layers is None else layers
        self.strength, self.base_layers = strength, base_layers
        if self.rule.norm == "post":
            raise UserError(f"rule {self.rule.name!r} is for Post-LN networks: use a pre-norm rule such as 'looped'")
        if not any(isinstance(part, ScaledResidual) for part in stack.modules()):
            raise UserError("the stack has no ScaledResidual: wrap each residual branch, ScaledResidual(branch, norm)")
        self.residual_scale(loops)

    def residual_scale(self, loops: int) -> float:
        """eps for this many loops."""
        return self.rule.residual_scale(Depth(loops, self.layers), self.strength, self.base_layers).value

    def forward(self, stream: Tensor, *args: Any, loops: int | None = None, **kwargs: Any) -> Tensor:
        """Visit the stack `loops` times (default: as constructed); extra arguments go to every visit."""
        visits = self.loops if loops is None else loops
        scale = self.residual_scale(visits)
        for part in self.stack.modules():
            if isinstance(part, ScaledResidual):
                part.set_scale(scale)
        for _ in range(visits):
            stream = self.stack(stream, *args, **kwargs)
        return stream


def _count_layers(stack: nn.Module) -> int:
    if isinstance(stack, (nn.Sequential, nn.ModuleList)):
        return len(stack)
    if isinstance(stack, ScaledResidual):
        return 1
    raise UserError("cannot count the layers of the stack: pass layers= (attention and MLP together are one layer)")
