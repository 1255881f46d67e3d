"""LoopLM: a decoder whose layers are repeated `total_ut_steps` times, with exit gates; sandwich norms keep each branch at size one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class LoopLMConfig:
    vocab_size: int = 88
    d_model: int = 32
    n_heads: int = 4
    n_layers: int = 2
    total_ut_steps: int = 6
    d_ff: int = 64


def precompute(seq, dim, theta=10000.0):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
    return torch.polar(torch.ones(seq, dim // 2), torch.outer(torch.arange(seq).float(), freqs))


def apply_rotary(x, freqs_cis):
    x_ = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(x_ * freqs_cis).flatten(3).type_as(x)


class DecoderLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d = cfg.d_model
        self.n_heads = cfg.n_heads
        self.pre_attn, self.post_attn, self.pre_ffn, self.post_ffn = (nn.RMSNorm(d) for _ in range(4))
        self.qkv, self.wo = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.wi, self.wg, self.wd = (
            nn.Linear(d, cfg.d_ff, bias=False),
            nn.Linear(d, cfg.d_ff, bias=False),
            nn.Linear(cfg.d_ff, d, bias=False),
        )

    def attention(self, x, freqs_cis):
        b, s, d = x.shape
        q, k, v = (t.view(b, s, self.n_heads, -1).transpose(1, 2) for t in self.qkv(x).split(d, -1))
        q, k = apply_rotary(q, freqs_cis), apply_rotary(k, freqs_cis)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(o.transpose(1, 2).reshape(b, s, d))

    def feed_forward(self, x):
        return self.wd(F.silu(self.wg(x)) * self.wi(x))

    def forward(self, x, freqs_cis):
        x = x + self.post_attn(self.attention(self.pre_attn(x), freqs_cis))
        x = x + self.post_ffn(self.feed_forward(self.pre_ffn(x)))
        return x


class LoopLM(nn.Module):
    def __init__(self, cfg: LoopLMConfig):
        super().__init__()
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.layers = nn.ModuleList([DecoderLayer(cfg) for _ in range(cfg.n_layers)])
        self.exit_gate = nn.Linear(cfg.d_model, 1)
        self.final_norm = nn.RMSNorm(cfg.d_model)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)

    def forward(self, tokens, return_all=False):
        freqs_cis = precompute(tokens.shape[1], self.cfg.d_model // self.cfg.n_heads)
        hidden = self.wte(tokens)
        survive, pdf, logits = torch.ones(*tokens.shape, 1), [], []
        for step in range(self.cfg.total_ut_steps):
            for layer in self.layers:
                hidden = layer(hidden, freqs_cis)
            normed = self.final_norm(hidden)
            lam = (
                torch.sigmoid(self.exit_gate(normed))
                if step < self.cfg.total_ut_steps - 1
                else torch.ones_like(survive)
            )
            pdf.append(lam * survive)
            survive = survive * (1 - lam)
            logits.append(self.lm_head(normed))
        if return_all:
            return logits, pdf
        return sum(p * out for p, out in zip(pdf, logits))


def sandwich(total_ut_steps=6):
    model = LoopLM(LoopLMConfig(total_ut_steps=total_ut_steps))
    return model, torch.randint(0, 88, (2, 14), generator=torch.Generator().manual_seed(111))


TRUTHS = {
    "sandwich": dict(
        codes=["unscaled-residual"],
        loops=6,
        layers=2,
        law="linear",
        watch="LoopLM.forward:hidden",
        place={"unscaled-residual": ["x = x + self.post_attn(|post_attn", "x = x + self.post_ffn(|post_ffn"]},
        mend="attach",
        kind="norm",
        level="medium",
        why="the norms stand in the branches; the stream itself is normed for the readout only, and grows by one a branch",
    ),
}
