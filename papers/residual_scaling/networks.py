"""The small networks of the studies, from public pieces only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loopscale as ls


def tokens(seed: int, batch: int = 8, length: int = 64) -> Tensor:
    """Random bytes [B, T]."""
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


def transformer(rule: str, seed: int, layers: int = 1, loops: int = 4, width: int = 128) -> ls.LoopedTransformer:
    """The house Transformer; layers count absolutely (no base)."""
    return ls.LoopedTransformer(ls.ModelConfig(width=width, layers=layers, loops=loops, rule=rule), seed=seed)


@contextmanager
def branch_outputs(model: nn.Module, kind: str) -> Iterator[list[Tensor]]:
    """Collect the outputs of all modules named `kind` ("attention" or "mlp") in the order of their visits."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
        for name, module in model.named_modules()
        if name.startswith("core.") and name.rpartition(".")[2] == kind
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class MLP(nn.Module):
    """Two matrices around an activation, or three for SwiGLU; initialised by 1/sqrt(fan_in)."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        hidden = 2 * width
        self.activation = {"relu": F.relu, "gelu": F.gelu, "swiglu": F.silu}[activation]
        self.up, self.down = linear(width, hidden), linear(hidden, width)
        self.gate = linear(width, hidden) if activation == "swiglu" else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        inner = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        out: Tensor = self.down(inner)
        return out


class Attention(nn.Module):
    """Plain causal self-attention with four heads. [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Four heads."""
        split = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return out


class Unscaled(nn.Module):
    """`x + branch(norm(x))`: a branch that the rule does not reach."""

    def __init__(self, branch: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.branch, self.norm = branch, norm

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the same."""
        out: Tensor = x + self.branch(self.norm(x))
        return out


def linear(inside: int, outside: int) -> nn.Linear:
    """A matrix without bias, entries N(0, 1/fan_in)."""
    layer = nn.Linear(inside, outside, bias=False)
    nn.init.normal_(layer.weight, std=inside**-0.5)
    return layer


def looped_mlp(activation: str, rule: str, seed: int, width: int = 128) -> Callable[[int], nn.Module]:
    """A factory: number of loops -> `Loop` around one pre-norm MLP."""

    def make(loops: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            block = ls.ScaledResidual(MLP(width, activation), norm=nn.RMSNorm(width))
        return ls.Loop(nn.Sequential(block), loops=loops, rule=rule)

    return make
