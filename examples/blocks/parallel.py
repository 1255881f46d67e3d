"""Attention and MLP side by side, from one norm, added at once: one `ScaledResidual` around their sum, one eps."""

import torch
from looped_vit import Attention, mlp
from torch import Tensor, nn

import loopscale as ls


class Parallel(nn.Module):
    """The sum of branches that read the same input. [.., D] -> [.., D]."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Different branches are as good as orthogonal at initialisation: two of them make one layer, as in sequence."""
        return sum(branch(x) for branch in self.branches)


class LoopedParallel(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10]."""

    def __init__(self, loops: int, rule: str = "looped", width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.5 * torch.randn(16, width))
        both = Parallel(Attention(width, heads=4), mlp(width))
        self.core = ls.Loop(ls.ScaledResidual(both, nn.LayerNorm(width)), loops, rule)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> Tensor:
        """`loops` is a run-time knob."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.core(x, loops=loops)).mean(1))


def make_model(loops: int, rule: str = "looped") -> nn.Module:
    """The same initial weights at every number of loops."""
    torch.manual_seed(0)
    return LoopedParallel(loops, rule)


if __name__ == "__main__":
    from show import show

    show(make_model)
