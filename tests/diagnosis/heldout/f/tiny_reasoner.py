# Minimal reimplementation of a tiny recursive model for grids. T outer passes, all but the last without gradients; n inner updates of z.
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Carry(NamedTuple):
    y: Tensor
    z: Tensor


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    dtype = x.dtype
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(dtype)


class CastedLinear(nn.Module):
    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(fan_out, fan_in), std=fan_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, expansion: float = 2.0):
        super().__init__()
        inter = int(expansion * dim)
        self.gate_up, self.down = CastedLinear(dim, inter * 2), CastedLinear(inter, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class MixerBlock(nn.Module):
    """Attention-free variant: an MLP over the cells, an MLP over the features, both post-norm."""

    def __init__(self, dim: int, cells: int):
        super().__init__()
        self.mlp_t, self.mlp = SwiGLU(cells), SwiGLU(dim)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.transpose(1, 2)
        hidden = rms_norm(hidden + self.mlp_t(hidden))
        hidden = hidden.transpose(1, 2)
        return rms_norm(hidden + self.mlp(hidden))


class Net(nn.Module):
    def __init__(self, dim: int, cells: int, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList([MixerBlock(dim, cells) for _ in range(layers)])

    def forward(self, hidden: Tensor, injection: Tensor) -> Tensor:
        hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class TinyRecursiveModel(nn.Module):
    def __init__(self, vocab: int = 11, dim: int = 32, cells: int = 16, T: int = 3, n: int = 4):
        super().__init__()
        self.embed_scale = dim**0.5
        self.embed = nn.Embedding(vocab, dim)
        nn.init.trunc_normal_(self.embed.weight, std=1 / self.embed_scale)
        self.net, self.T, self.n = Net(dim, cells), T, n
        self.register_buffer("y_init", nn.init.trunc_normal_(torch.empty(dim), std=1.0))
        self.register_buffer("z_init", nn.init.trunc_normal_(torch.empty(dim), std=1.0))
        self.head, self.q_head = CastedLinear(dim, vocab), nn.Linear(dim, 1)
        with torch.no_grad():
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(-5.0)

    def latent_recursion(self, x: Tensor, carry: Carry) -> Carry:
        y, z = carry
        for _ in range(self.n):
            z = self.net(z, x + y)
        y = self.net(y, z)
        return Carry(y, z)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed_scale * self.embed(inputs)
        carry = Carry(self.y_init.expand_as(x), self.z_init.expand_as(x))
        with torch.no_grad():
            for _ in range(self.T - 1):
                carry = self.latent_recursion(x, carry)
        carry = self.latent_recursion(x, carry)
        return self.head(carry.y), self.q_head(carry.y[:, 0]).squeeze(-1)


def trm_mlp():
    return TinyRecursiveModel(), torch.randint(0, 11, (2, 16), generator=torch.Generator().manual_seed(7))


TRUTHS = {
    "trm_mlp": dict(
        codes=["norm-bounded", "truncated-gradient"],
        law="bounded",
        watch="TinyRecursiveModel.latent_recursion:z",
        kind="two time scales",
        level="medium",
        why="every visit ends in a norm; only the last of three passes has a gradient. What N is, 3, 12 or 15, is a matter of taste",
    ),
}
