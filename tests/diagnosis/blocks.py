"""Own looped models in labelled states: small, plain torch, each with one known truth."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, VOCAB = 48, 61


class Attention(nn.Module):
    def __init__(self, width=WIDTH, heads=4):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """placement: pre, post or sandwich (norms around the branch; the loop then norms the stream too)."""

    def __init__(self, scale=1.0, placement="pre"):
        super().__init__()
        self.attention, self.mlp, self.scale, self.placement = Attention(), Mlp(), scale, placement
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(self, x):
        a, b, c, d = self.norms
        if self.placement == "post":
            x = a(x + self.scale * self.attention(x))
            return b(x + self.scale * self.mlp(x))
        if self.placement == "sandwich":
            x = x + self.scale * c(self.attention(a(x)))
            return x + self.scale * d(self.mlp(b(x)))
        x = x + self.scale * self.attention(a(x))
        return x + self.scale * self.mlp(b(x))


def rule_scale(rule, loops, layers):
    return {
        "looped": 1 / (loops * math.sqrt(layers)),
        "none": 1.0,
        "sqrt": 1 / math.sqrt(loops * layers),
        "sqrt_n": 1 / math.sqrt(loops),
    }[rule]


class Looped(nn.Module):
    """Embedding, a loop over layers, readout. `carry` is what the loop does besides: see the branches of forward."""

    def __init__(self, rule="looped", loops=8, layers=1, placement="pre", carry="plain", decay=0.8, follow=False):
        super().__init__()
        self.embed, self.readout, self.norm = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Block(rule_scale(rule, loops, layers), placement) for _ in range(layers))
        self.loops, self.carry, self.rule, self.follow = loops, carry, rule, follow
        self.inject = nn.Linear(WIDTH, WIDTH)
        self.adapter = nn.Linear(2 * WIDTH, WIDTH)
        self.decay = nn.Parameter(torch.full((WIDTH,), math.log(-math.log(decay)) if decay < 1 else -20.0))

    def forward(self, tokens):
        e = x = self.embed(tokens)
        if self.carry == "layerwise":
            for layer in self.layers:
                for _ in range(self.loops):
                    x = layer(x)
            return self.readout(self.norm(x))
        for _ in range(self.loops):
            x = self.visit(x, e)
        return self.readout(self.norm(x))

    def visit(self, x, e):
        if self.carry == "inject":
            x = x + e
        elif self.carry == "inject_linear":
            x = x + self.inject(e)
        elif self.carry == "inject_scaled":
            x = x + e / self.loops
        elif self.carry == "inject_branch":
            return x + self.run(self.norm(x + e)) / self.loops
        elif self.carry in ("decay", "marginal"):
            x = torch.exp(-torch.exp(self.decay)) * x + 0.1 * self.inject(e)
        elif self.carry == "adapter":
            x = self.adapter(torch.cat((x, e), -1))
        y = self.run(x)
        if self.carry == "nested":
            return x + y
        return self.norm(y) if self.carry == "final_norm" else y

    def run(self, x):
        for layer in self.layers:
            if self.follow:
                layer.scale = rule_scale(self.rule, self.loops, len(self.layers))
            x = layer(x)
        return x


class KwargLoops(Looped):
    """Loops as an argument of forward; eps follows."""

    def forward(self, tokens, n_loops=None):
        before, self.loops, self.follow = self.loops, n_loops or self.loops, True
        try:
            return super().forward(tokens)
        finally:
            self.loops = before


class Functional(nn.Module):
    """No module is visited twice: raw weights in a Python loop."""

    def __init__(self, loops=6, scale=1.0):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(96, 32) / 6), nn.Parameter(torch.randn(32, 96) / 10)
        self.loops, self.scale = loops, scale

    def forward(self, x):
        for _ in range(self.loops):
            x = x + self.scale * F.linear(F.relu(F.linear(F.rms_norm(x, (32,)), self.w)), self.v)
        return x


class SharedStorage(nn.Module):
    """Distinct blocks whose parameters are one and the same."""

    def __init__(self, loops=6, rule="none", partly=False):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(rule_scale(rule, loops, 1)) for _ in range(loops))
        for block in self.blocks[1:]:
            for name in ("attention", "norms") if partly else ("attention", "mlp", "norms"):
                twin, source = getattr(block, name), getattr(self.blocks[0], name)
                for path, parameter in source.named_parameters():
                    stem, _, last = path.rpartition(".")
                    setattr(twin.get_submodule(stem), last, parameter)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x


class Untied(nn.Module):
    """Copies where one block was meant."""

    def __init__(self, loops=4, copies=True):
        super().__init__()
        self.embed, first = nn.Embedding(VOCAB, WIDTH), Block(1 / loops)
        self.blocks = nn.ModuleList(copy.deepcopy(first) if copies else Block(1 / loops) for _ in range(loops))
        if not copies:
            self.num_loops = loops

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x


class Recurrent(nn.Module):
    """Nested loops of two modules, one state each, fed by the input."""

    def __init__(self, outer=2, inner=3):
        super().__init__()
        self.embed, self.low, self.high = nn.Embedding(VOCAB, WIDTH), Block(0.1, "post"), Block(0.1, "post")
        self.outer, self.inner = outer, inner

    def forward(self, tokens):
        e = self.embed(tokens)
        high, low = torch.zeros_like(e), torch.zeros_like(e)
        for _ in range(self.outer):
            for _ in range(self.inner):
                low = self.low(low + high + e)
            high = self.high(high + low)
        return high


def zero_out(model):
    for module in model.modules():
        if isinstance(module, (Attention, Mlp)):
            last = module.out if isinstance(module, Attention) else module.down
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return model


def shrink_out(model, depth):
    for module in model.modules():
        if isinstance(module, (nn.Linear,)):
            nn.init.normal_(module.weight, std=0.1)
    for module in model.modules():
        if isinstance(module, (Attention, Mlp)):
            last = module.out if isinstance(module, Attention) else module.down
            nn.init.normal_(last.weight, std=0.1 / math.sqrt(2 * depth))
    return model
