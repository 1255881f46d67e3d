"""Learned gates: LayerScale (a number a channel, starts small) and ReZero (one number, starts at 0), inside the branch.

The gate learns how loud a branch is; eps stays outside and carries the number of loops. One gate is shared by all visits.
"""

import torch
from looped_vit import Attention, mlp
from torch import Tensor, nn

import loopscale as ls


class LayerScale(nn.Module):
    """gate * branch(x), a gate a channel. [.., D] -> [.., D]."""

    def __init__(self, branch: nn.Module, width: int, start: float = 0.1) -> None:
        super().__init__()
        self.branch, self.gate = branch, nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """A gain as a role: no weight decay."""
        return self.gate * self.branch(x)


class ReZero(nn.Module):
    """gate * branch(x), one gate that starts at 0: the core is the identity until the first step."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.gate = branch, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """At 0 the branch itself gets no gradient: the gate moves first."""
        return self.gate * self.branch(x)


class LoopedGated(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10]; `kind` is the gate."""

    def __init__(self, loops: int, rule: str = "looped", kind: str = "layer scale", width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.5 * torch.randn(16, width))
        branches = (Attention(width, heads=4), mlp(width))
        gated = [LayerScale(b, width) if kind == "layer scale" else ReZero(b) for b in branches]
        stack = nn.Sequential(*(ls.ScaledResidual(branch, nn.LayerNorm(width)) for branch in gated))
        self.core = ls.Loop(stack, loops, rule, layers=1)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> Tensor:
        """`loops` is a run-time knob."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.core(x, loops=loops)).mean(1))


def make_model(loops: int, rule: str = "looped", kind: str = "layer scale") -> nn.Module:
    """The same initial weights at every number of loops."""
    torch.manual_seed(0)
    return LoopedGated(loops, rule, kind)


def make_rezero(loops: int, rule: str = "looped") -> nn.Module:
    """The same with gates that start at 0."""
    return make_model(loops, rule, kind="rezero")


if __name__ == "__main__":
    from show import show

    show(make_model)
    show(make_rezero)
