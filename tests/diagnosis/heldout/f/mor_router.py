"""Mixture-of-Recursions, expert choice: at each recursion the router keeps the k best tokens, only they go through the shared block."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class MoRArgs:
    dim: int = 32
    n_heads: int = 4
    vocab: int = 72
    recursion_depth: int = 8
    capacity: float = 0.75


class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self._norm(x.float()).type_as(x) * self.weight


class SharedBlock(nn.Module):
    def __init__(self, args: MoRArgs):
        super().__init__()
        self.n_heads = args.n_heads
        self.attention_norm, self.ffn_norm = RMSNorm(args.dim), RMSNorm(args.dim)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(args.dim, args.dim, bias=False) for _ in range(4))
        self.w1, self.w3 = nn.Linear(args.dim, 2 * args.dim, bias=False), nn.Linear(args.dim, 2 * args.dim, bias=False)
        self.w2 = nn.Linear(2 * args.dim, args.dim, bias=False)

    def attention(self, x, positions):
        bsz, seqlen, dim = x.shape
        xq, xk, xv = (w(x).view(bsz, seqlen, self.n_heads, -1).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        visible = positions[:, None, :, None] >= positions[:, None, None, :]
        y = F.scaled_dot_product_attention(xq, xk, xv, attn_mask=visible)
        return self.wo(y.transpose(1, 2).reshape(bsz, seqlen, dim))

    def forward(self, x, positions):
        h = x + self.attention(self.attention_norm(x), positions)
        y = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(y)) * self.w3(y))


class MixtureOfRecursions(nn.Module):
    def __init__(self, args: MoRArgs):
        super().__init__()
        self.args = args
        self.tok_embeddings = nn.Embedding(args.vocab, args.dim)
        self.router = nn.Linear(args.dim, 1, bias=False)
        self.block = SharedBlock(args)
        self.norm, self.output = RMSNorm(args.dim), nn.Linear(args.dim, args.vocab, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.5 if "tok" in name else p.shape[1] ** -0.5)

    def forward(self, tokens):
        h = self.tok_embeddings(tokens)
        k = max(1, int(self.args.capacity * tokens.shape[1]))
        scores = torch.sigmoid(self.router(h)).squeeze(-1)
        for _ in range(self.args.recursion_depth):
            _, chosen = scores.topk(k, dim=-1, sorted=False)
            chosen, _ = chosen.sort(dim=-1)
            index = chosen[..., None].expand(-1, -1, h.shape[-1])
            picked = h.gather(1, index)
            made = self.block(picked, chosen)
            h = h.scatter(1, index, made)
        return self.output(self.norm(h))


def expert_choice(recursion_depth=8):
    model = MixtureOfRecursions(MoRArgs(recursion_depth=recursion_depth))
    return model, torch.randint(0, 72, (2, 16), generator=torch.Generator().manual_seed(21))


TRUTHS = {
    "expert_choice": dict(
        codes=["unscaled-residual"],
        loops=8,
        layers=1,
        law="linear",
        watch="MixtureOfRecursions.forward:h",
        place={
            "unscaled-residual": [
                "h = x + self.attention|wo|attention",
                "return h + self.w2|w2",
            ]
        },
        kind="routing",
        level="medium",
        why="three quarters of the tokens are gathered, go through x + f(x) and are scattered back, 8 times, with eps = 1",
    ),
}
