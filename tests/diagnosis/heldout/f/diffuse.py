"""Looped diffusion transformers: adaLN-Zero conditioning as in the original; and a shared block without it, by a cautious author."""

import math

import torch
import torch.nn as nn


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden_size, frequency_embedding_size=32):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size, bias=True),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size, bias=True),
        )
        self.frequency_embedding_size = frequency_embedding_size

    @staticmethod
    def timestep_embedding(t, dim, max_period=10000):
        half = dim // 2
        freqs = torch.exp(-math.log(max_period) * torch.arange(start=0, end=half, dtype=torch.float32) / half)
        args = t[:, None].float() * freqs[None]
        return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)

    def forward(self, t):
        return self.mlp(self.timestep_embedding(t, self.frequency_embedding_size))


class SelfAttention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.qkv, self.proj, self.num_heads = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), num_heads

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        attn = ((q * (C // self.num_heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class DiTBlock(nn.Module):
    def __init__(self, hidden_size, num_heads, rate=1.0, zero=True):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.rate, self.zero = rate, zero
        if zero:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size, bias=True))

    def forward(self, x, c):
        if not self.zero:
            x = x + self.rate * self.attn(self.norm1(x))
            return x + self.rate * self.mlp(self.norm2(x))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + self.rate * gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        x = x + self.rate * gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        return x


class DiT(nn.Module):
    def __init__(self, depth=8, hidden_size=32, num_heads=4, tokens=16, zero=True, deep_init=False):
        super().__init__()
        self.x_embedder, self.t_embedder = nn.Linear(4, hidden_size), TimestepEmbedder(hidden_size)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, hidden_size) * 0.02, requires_grad=False)
        self.block, self.depth = DiTBlock(hidden_size, num_heads, 1.0 / depth, zero), depth
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, 4)
        self.initialize_weights(deep_init)

    def initialize_weights(self, deep_init):
        def _basic_init(module):
            if isinstance(module, nn.Linear):
                torch.nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0)

        self.apply(_basic_init)
        if self.block.zero:
            nn.init.constant_(self.block.adaLN_modulation[-1].weight, 0)
            nn.init.constant_(self.block.adaLN_modulation[-1].bias, 0)
        if deep_init:
            with torch.no_grad():  # residual projections shrink with the depth, as GPT-2 does
                self.block.attn.proj.weight.div_(math.sqrt(2 * self.depth))
                self.block.mlp[2].weight.div_(math.sqrt(2 * self.depth))

    def forward(self, x, t):
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t)
        if not self.block.zero:
            x = x + c.unsqueeze(1)
        for _ in range(self.depth):
            x = self.block(x, c)
        return self.linear(self.norm_final(x))


def _latents():
    g = torch.Generator().manual_seed(61)
    return torch.randn(2, 16, 4, generator=g), torch.tensor([12, 700])


def dit_zero(depth=8):
    return DiT(depth), _latents()


def dit_cautious(depth=8):
    return DiT(depth, zero=False, deep_init=True), _latents()


TRUTHS = {
    "dit_zero": dict(
        codes=["dead-branch"],
        loops=8,
        layers=1,
        watch="DiT.forward:x",
        kind="gate",
        level="easy",
        why="all six modulations start at zero, so both branches add exactly nothing; with open gates they would carry 1/N",
    ),
    "dit_cautious": dict(
        codes=["double-depth-scale"],
        loops=8,
        layers=1,
        watch="DiT.forward:x",
        kind="initialisation",
        level="medium",
        why="1/depth stands in the forward, and attn.proj and mlp[2] were divided by sqrt(2 depth) = 4 as well",
    ),
}
