"""A linear-attention (state-space) mixer in a loop: a decaying state reads the 64 pixels one after the other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loopscale as ls


class DecayMixer(nn.Module):
    """y_t = q_t S_t, S_t = a S_(t-1) + k_t v_t^T, with a decay a < 1 a head, written as one masked product.

    [B, T, D] -> [B, T, D]. The decay is exp(-exp(log_rate)): below 1, and away from it, by construction.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.gate, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, width)
        self.log_rate = nn.Parameter(torch.linspace(-4.0, 0.0, heads))
        self.norm = nn.RMSNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        """Causal; costs T^2 products at this length, which a scan would not."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        steps = torch.arange(x.shape[1])
        passed = steps[:, None] - steps
        decay = torch.exp(-passed * self.log_rate.exp()[:, None, None]).masked_fill(passed < 0, 0.0)
        y = self.norm(((q @ k.transpose(-1, -2)) * decay) @ v).transpose(1, 2).flatten(2)
        return self.out(y * F.silu(self.gate(x)))


class LoopedMixer(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10], read after the last pixel."""

    def __init__(self, loops: int, rule: str = "looped", width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.position = nn.Parameter(0.5 * torch.randn(64, width))
        self.core = ls.Loop(ls.ScaledResidual(DecayMixer(width, heads=4), nn.RMSNorm(width)), loops, rule)
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> Tensor:
        """`loops` is a run-time knob."""
        x = self.embed(images.flatten(1)[..., None]) + self.position
        return self.head(self.norm(self.core(x, loops=loops)[:, -1]))


def make_model(loops: int, rule: str = "looped") -> nn.Module:
    """The same initial weights at every number of loops."""
    torch.manual_seed(0)
    return LoopedMixer(loops, rule)


if __name__ == "__main__":
    from show import show

    show(make_model, steps=100)
