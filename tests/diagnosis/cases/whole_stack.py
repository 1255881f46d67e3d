"""Whole stacks read again: Ouro with an exit gate (a norm at each visit), RINS (the first half is read again), ALBERT with two groups, and a
stack looped by `functools.reduce`. `norm_once` is Ouro with its norm moved behind the loop.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

TRUTHS = {
    "ouro": {"codes": "norm-bounded", "law": "bounded", "loops": 4, "layers": 2, "kind": "whole stack"},
    "norm_once": {
        "codes": "unscaled-residual",
        "law": "linear",
        "loops": 4,
        "layers": 2,
        "kind": "whole stack",
        "attach": True,
    },
    "rins": {
        "codes": "unscaled-residual",
        "law": "linear",
        "loops": 3,
        "layers": 2,
        "kind": "whole stack",
        "attach": True,
    },
    "rins_right": {"codes": "", "law": "bounded", "loops": 3, "layers": 2, "kind": "whole stack"},
    "albert": {"codes": "norm-bounded", "law": "bounded", "loops": 3, "kind": "whole stack"},
    "reduced": {
        "codes": "sqrt-scaled",
        "law": None,
        "loops": 16,
        "layers": 1,
        "kind": "whole stack",
        "mended": "reduced_right",
    },
    "reduced_right": {"codes": "", "law": "bounded", "loops": 16, "layers": 1, "kind": "whole stack"},
}


class Sandwich(nn.Module):
    def __init__(self, d=48, sandwich=True, eps=1.0):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(d), nn.RMSNorm(d)
        self.input_layernorm_2 = nn.RMSNorm(d) if sandwich else nn.Identity()
        self.post_attention_layernorm_2 = nn.RMSNorm(d) if sandwich else nn.Identity()
        self.q_proj, self.kv_proj, self.o_proj = nn.Linear(d, d), nn.Linear(d, d // 2), nn.Linear(d, d)
        self.gate_up, self.down_proj, self.eps = nn.Linear(d, 4 * d), nn.Linear(2 * d, d), eps

    def self_attn(self, x):
        q = self.q_proj(x).unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (
            z.unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(2, 1)
            for z in self.kv_proj(x).repeat(1, 1, 2).chunk(2, -1)
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def mlp(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)

    def forward(self, hidden):
        hidden = hidden + self.eps * self.input_layernorm_2(self.self_attn(self.input_layernorm(hidden)))
        return hidden + self.eps * self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(hidden)))


class LoopLM(nn.Module):
    """The answer is the mean of all visits' answers, by the chance that the gate ends there."""

    def __init__(self, total_ut_steps=4, each=True, d=48):
        super().__init__()
        self.embed_tokens, self.layers = nn.Embedding(80, d), nn.ModuleList(Sandwich(d) for _ in range(2))
        self.norm, self.early_exit_gate, self.lm_head = nn.RMSNorm(d), nn.Linear(d, 1), nn.Linear(d, 80)
        self.total_ut_steps, self.each = total_ut_steps, each

    def forward(self, input_ids):
        x, left, logits = self.embed_tokens(input_ids), 1.0, 0.0
        for step in range(self.total_ut_steps):
            for layer in self.layers:
                x = layer(x)
            x = self.norm(x) if self.each else x
            y = x if self.each else self.norm(x)
            ends = torch.sigmoid(self.early_exit_gate(y)) if step + 1 < self.total_ut_steps else 1.0
            logits = logits + left * ends * self.lm_head(y)
            left = left * (1 - ends)
        return logits


class RINS(nn.Module):
    def __init__(self, rounds=3, eps=1.0, d=48):
        super().__init__()
        self.embed, self.rounds = nn.Embedding(80, d), rounds
        self.first = nn.ModuleList(Sandwich(d, False, eps) for _ in range(2))
        self.second = nn.ModuleList(Sandwich(d, False) for _ in range(2))
        self.out = nn.Sequential(nn.RMSNorm(d), nn.Linear(d, 80))

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.rounds):
            for layer in self.first:
                x = layer(x)
        for layer in self.second:
            x = layer(x)
        return self.out(x)


class Albert(nn.Module):
    """Six layers in two groups, one after the other: each group's layer acts three times in a row."""

    def __init__(self, num_hidden_layers=6, num_hidden_groups=2, d=48):
        super().__init__()
        self.factor, self.widen = nn.Embedding(80, 16), nn.Linear(16, d)
        self.groups = nn.ModuleList(
            nn.TransformerEncoderLayer(d, 4, 2 * d, batch_first=True) for _ in range(num_hidden_groups)
        )
        self.num_hidden_layers, self.num_hidden_groups = num_hidden_layers, num_hidden_groups

    def forward(self, ids):
        x = self.widen(self.factor(ids))
        for i in range(self.num_hidden_layers):
            x = self.groups[i * self.num_hidden_groups // self.num_hidden_layers](x)
        return x @ self.widen.weight @ self.factor.weight.T


class Reduced(nn.Module):
    """No `for`: the loop is a fold over a range, the layer a function of a dict of tensors."""

    def __init__(self, depth=16, eps=0.25, d=48):
        super().__init__()
        shapes = {"in": (d, 4 * d), "out": (4 * d, d)}
        self.theta = nn.ParameterDict({k: nn.Parameter(torch.randn(s) * s[0] ** -0.5) for k, s in shapes.items()})
        self.tokens, self.depth, self.eps = nn.Embedding(80, d), depth, eps

    def forward(self, ids):
        def body(x, _, p=self.theta, eps=self.eps):
            return x + eps * (torch.relu(F.layer_norm(x, x.shape[-1:]) @ p["in"]) @ p["out"])

        return functools.reduce(body, range(self.depth), self.tokens(ids)) @ self.tokens.weight.T


def ouro():
    torch.manual_seed(0)
    return LoopLM()


def norm_once():
    torch.manual_seed(0)
    return LoopLM(each=False)


def rins():
    torch.manual_seed(0)
    return RINS()


def rins_right():
    torch.manual_seed(0)
    return RINS(eps=1 / (3 * 2**0.5))


def albert():
    torch.manual_seed(0)
    return Albert()


def reduced():
    torch.manual_seed(0)
    return Reduced()


def reduced_right():
    torch.manual_seed(0)
    return Reduced(eps=1 / 16)
