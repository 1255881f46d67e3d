"""A looped vision Transformer: `x + f(x)` becomes `ScaledResidual(f, norm)`, the layers go into a `Loop`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loopscale as ls


class Attention(nn.Module):
    """Attention of every patch to every other. [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk, self.value = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Plain softmax attention."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (*self.qk(x).chunk(2, -1), self.value(x))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mlp(width: int) -> nn.Sequential:
    """[.., D] -> [.., D] over a hidden width of 2 D."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def layer(width: int) -> nn.Sequential:
    """Two residual branches, attention and MLP: one layer."""
    return nn.Sequential(
        ls.ScaledResidual(Attention(width, heads=4), nn.LayerNorm(width)),
        ls.ScaledResidual(mlp(width), nn.LayerNorm(width)),
    )


class LoopedViT(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10] over patches of 2 x 2."""

    def __init__(self, loops: int, layers: int = 2, width: int = 32, rule: str = "looped") -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.5 * torch.randn(16, width))
        self.core = ls.Loop(nn.Sequential(*(layer(width) for _ in range(layers))), loops, rule, base_layers=layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> Tensor:
        """`loops` is a run-time knob."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.core(x, loops=loops)).mean(1))


def make_model(loops: int, rule: str = "looped") -> nn.Module:
    """The same initial weights at every number of loops."""
    torch.manual_seed(0)
    return LoopedViT(loops, rule=rule)


if __name__ == "__main__":
    from show import show

    show(make_model)
