"""What differs between visits: time embeddings that modulate (adaLN-zero, as diffusion transformers have it), time embeddings that are added to the
stream, per-visit biases, a fused parallel block, ReZero. `added` sums its time signal into the stream, one direction at every visit.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

TRUTHS = {
    "adaln": {"codes": "dead-branch", "law": "bounded", "loops": 6, "layers": 1, "kind": "time signal"},
    "added": {
        "codes": "unscaled-injection",
        "law": "linear",
        "loops": 10,
        "layers": 1,
        "kind": "time signal",
        "mended": "added_right",
    },
    "added_right": {"codes": "", "law": "bounded", "loops": 10, "layers": 1, "kind": "time signal"},
    "both": {
        "codes": "unscaled-residual unscaled-injection",
        "law": "linear",
        "loops": 10,
        "layers": 1,
        "kind": "time signal",
        "hard": "two faults",
        "mended": "added_right",
    },
    "parallel": {
        "codes": "unscaled-residual",
        "law": "linear",
        "loops": 5,
        "layers": 1,
        "kind": "parallel",
        "attach": True,
    },
    "parallel_right": {"codes": "", "law": "bounded", "loops": 5, "layers": 1, "kind": "parallel"},
    # One gate for all visits, without 1/N: what it opens to is added N times. In plain torch four steps of AdamW (rate 0.001) move
    # the loop's own part by 0.0058, 0.0115, 0.0230, 0.0460 of the stream at N = 6, 12, 24, 48. The truth stated first left that out.
    "rezero": {"codes": "dead-branch unscaled-residual", "law": "bounded", "loops": 12, "layers": 1, "kind": "gate"},
}


def timing(t, d):
    angle = t * torch.exp(-math.log(1e4) * torch.arange(d // 2) / (d // 2))
    return torch.cat([angle.cos(), angle.sin()])


class AdaLN(nn.Module):
    def __init__(self, n_steps=6, d=48):
        super().__init__()
        self.lift, self.n_steps, self.out = nn.Linear(8, d), n_steps, nn.Linear(d, 8)
        self.time = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 6 * d))
        nn.init.zeros_(self.time[2].weight)
        nn.init.zeros_(self.time[2].bias)
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(approximate="tanh"), nn.Linear(4 * d, d))

    def forward(self, x):
        h = self.lift(x)
        for n in range(self.n_steps):
            a, b, g, c, e, k = self.time(timing(n / self.n_steps, h.shape[-1])).chunk(6)
            y = F.layer_norm(h, h.shape[-1:]) * (1 + a) + b
            h = h + g * self.attn(y, y, y, need_weights=False)[0] / self.n_steps
            h = h + k * self.mlp(F.layer_norm(h, h.shape[-1:]) * (1 + c) + e) / self.n_steps
        return self.out(h)


class Added(nn.Module):
    def __init__(self, eps, signal, thinking_steps=10, d=48):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(64, d), nn.LayerNorm(d), nn.Linear(d, 64)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.common = nn.Parameter(torch.randn(d))
        self.private = nn.Parameter(0.1 * torch.randn(thinking_steps, d))
        self.eps, self.signal, self.thinking_steps = eps, signal, thinking_steps

    def forward(self, ids):
        x = self.embed(ids)
        for i in range(self.thinking_steps):
            x = x + self.signal * (self.common + self.private[i])
            x = x + self.eps * self.mlp(self.norm(x))
        return self.head(x)


class Parallel(nn.Module):
    """PaLM's block: one projection in, one out, attention and MLP side by side, keys and values shared by the heads."""

    def __init__(self, scale, loops=5, d=48, heads=4):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(64, d), nn.LayerNorm(d, bias=False), nn.Linear(d, 64)
        self.sizes = (d, d // heads, d // heads, 3 * d, 3 * d)
        self.fused, self.out = nn.Linear(d, sum(self.sizes), bias=False), nn.Linear(4 * d, d, bias=False)
        self.heads, self.loops, self.scale = heads, loops, scale

    def block(self, x):
        q, k, v, gate, up = self.fused(self.norm(x)).split(self.sizes, -1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k[:, None].expand_as(q), v[:, None].expand_as(q), is_causal=True)
        return self.out(torch.cat([mixed.transpose(1, 2).flatten(2), F.silu(gate) * up], -1))

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            x = x + self.block(x) if self.scale == 1 else torch.add(x, self.block(x), alpha=self.scale)
        return self.head(x)


class ReZero(nn.Module):
    def __init__(self, depth=12, d=48):
        super().__init__()
        self.embed, self.gate, self.depth, self.head = (
            nn.Embedding(64, d),
            nn.Parameter(torch.zeros(())),
            depth,
            nn.Linear(d, 64),
        )
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.depth):
            x = x + self.gate * self.mlp(x)
        return self.head(x)


def adaln():
    torch.manual_seed(0)
    return AdaLN(), torch.randn(2, 12, 8)


def added():
    torch.manual_seed(0)
    return Added(1 / 10, 1.0)


def added_right():
    torch.manual_seed(0)
    return Added(1 / 10, 1 / 10)


def both():
    torch.manual_seed(0)
    return Added(1.0, 1.0)


def parallel():
    torch.manual_seed(0)
    return Parallel(1)


def parallel_right():
    torch.manual_seed(0)
    return Parallel(1 / 5)


def rezero():
    torch.manual_seed(0)
    return ReZero()
