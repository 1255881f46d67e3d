"""A small GPT as users write it, with the rule put in by `Loop`, by `attach`, and with the usual slips."""

from __future__ import annotations

import torch
from torch import nn

import loopscale as ls

WIDTH, VOCABULARY, CONTEXT = 32, 64, 32


class Block(nn.Module):
    """Attention and MLP; `eps` scales both, `more` is a factor that somebody wrote besides."""

    def __init__(self, own: bool, more: float = 1.0) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.attn_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.mlp_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.eps, self.more = (ls.ScaledUpdate() if own else nn.Identity()), more
        for part in (self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
            nn.init.zeros_(part.bias)

    def attention(self, x):
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.c_attn(x).split(WIDTH, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_proj(mixed.transpose(1, 2).flatten(2))

    def mlp(self, x):
        return self.mlp_proj(nn.functional.gelu(self.c_fc(x)))

    def forward(self, x):
        x = x + self.more * self.eps(self.attention(self.ln_1(x)))
        return x + self.more * self.eps(self.mlp(self.ln_2(x)))


class GPT(nn.Module):
    """`way`: "plain" visits its blocks in a `for`; "loop" hands them to a `Loop`; "both" keeps the `for` around it."""

    def __init__(self, way="loop", loops=4, layers=2, more=1.0, **rule) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        stack = nn.Sequential(*(Block(way != "plain", more) for _ in range(layers)))
        self.body = stack if way == "plain" else ls.Loop(stack, loops=loops, **rule)
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.n_loop = 1 if way == "loop" else loops

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for _ in range(self.n_loop):
            x = self.body(x)
        return self.head(self.ln_f(x))
