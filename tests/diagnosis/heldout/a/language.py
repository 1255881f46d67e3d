"""Decoder-only language models that loop their layers: a dataclass config, fused qkv, weights drawn as many do."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab: int = 96
    width: int = 48
    heads: int = 4
    layers: int = 2
    loops: int = 8


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.qkv, self.o, self.heads = nn.Linear(c.width, 3 * c.width, bias=False), nn.Linear(c.width, c.width), c.heads

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))


def mlp(d):
    return nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))


class Alpha(nn.Module):
    """The factor is the alpha of torch.add."""

    def __init__(self, c):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.attn, self.mlp = Attention(c), mlp(c.width)

    def forward(self, x, eps):
        x = torch.add(x, self.attn(self.n1(x)), alpha=eps)
        return torch.add(x, self.mlp(self.n2(x)), alpha=eps)


class InPlace(Alpha):
    def forward(self, x, _):
        x += self.attn(self.n1(x))
        x += self.mlp(self.n2(x))
        return x


class Addcmul(Alpha):
    """1/sqrt(unrolled depth), as a tensor; wide weights make it plain."""

    def __init__(self, c):
        super().__init__(c)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p, gain=1.5)

    def forward(self, x, scale):
        x = torch.addcmul(x, self.attn(self.n1(x)), scale)
        return torch.addcmul(x, self.mlp(self.n2(x)), scale)


class GPT(nn.Module):
    def __init__(self, c, block):
        super().__init__()
        self.c, self.tok = c, nn.Embedding(c.vocab, c.width)
        self.h = nn.ModuleList(block(c) for _ in range(c.layers))
        self.norm, self.head = nn.LayerNorm(c.width), nn.Linear(c.width, c.vocab, bias=False)

    def scale(self):
        return 1 / (self.c.loops * self.c.layers**0.5)

    def forward(self, tokens):
        x = self.tok(tokens)
        eps = self.scale()
        for _ in range(self.c.loops):
            for block in self.h:
                x = block(x, eps)
        return self.head(self.norm(x))


class RootGPT(GPT):
    def scale(self):
        return torch.tensor((self.c.loops * self.c.layers) ** -0.5)


class Nested(GPT):
    def forward(self, tokens):
        x = self.tok(tokens)
        eps = self.scale()
        for _ in range(self.c.loops):
            y = x
            for block in self.h:
                y = block(y, eps)
            x = x + y
        return self.head(self.norm(x))


class Reminded(GPT):
    """The embedding again at every visit, beside branches that are scaled."""

    def __init__(self, c, block):
        super().__init__(c, block)
        self.again = nn.Linear(c.width, c.width, bias=False)
        nn.init.orthogonal_(self.again.weight)

    def forward(self, tokens):
        e = self.tok(tokens)
        x, eps = e, self.scale()
        for _ in range(self.c.loops):
            x = x + self.again(e)
            for block in self.h:
                x = block(x, eps)
        return self.head(self.norm(x))


class Inside(GPT):
    """Position and embedding go to the input of the branch only; nothing of them stays in the stream."""

    def __init__(self, c, block):
        super().__init__(c, block)
        self.place = nn.Parameter(torch.randn(64, c.width))

    def forward(self, tokens):
        e = self.tok(tokens)
        x, eps, signal = e, self.scale(), self.place[: tokens.shape[1]]
        for _ in range(self.c.loops):
            for block in self.h:
                x = x + eps * block.attn(block.n1(x + signal + e))
                x = x + eps * block.mlp(block.n2(x + signal))
        return self.head(self.norm(x))


def scaled(loops=8):
    return GPT(Config(loops=loops), Alpha)


def plain(loops=8):
    return GPT(Config(loops=loops), InPlace)


def root(loops=8):
    return RootGPT(Config(loops=loops), Addcmul)


def nested(loops=6):
    return Nested(Config(loops=loops, layers=1), Alpha)


def reminded(loops=8):
    return Reminded(Config(loops=loops, layers=1), Alpha)


def inside(loops=8):
    return Inside(Config(loops=loops), Alpha)


TRUTHS = {
    "scaled": dict(
        codes=[],
        loops=8,
        layers=2,
        level="easy",
        kind="language",
        watch="GPT.forward:x",
        why="eps = 1/(N sqrt(L)) that follows N",
    ),
    "plain": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=2,
        level="easy",
        kind="language",
        watch="GPT.forward:x",
        place={"unscaled-residual": ["x += self.attn|h.0.attn", "x += self.mlp|h.0.mlp"]},
        mend="attach",
        why="two layers add at eps = 1",
    ),
    "root": dict(
        codes=["sqrt-scaled"],
        loops=8,
        layers=2,
        level="medium",
        kind="language",
        watch="GPT.forward:x",
        place={"sqrt-scaled": ["x = torch.addcmul(x, self.attn|h.0.attn", "self.mlp(self.n2(x)), scale|h.0.mlp"]},
        mend="edit",
        why="eps = 1/sqrt(N L), computed from N in the forward",
    ),
    "nested": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=6,
        layers=1,
        level="easy",
        kind="language",
        watch="Nested.forward:x",
        place={"nested-skip": ["x = x + y"]},
        mend="edit",
        why="the block keeps its skip and the loop adds the stream again: 2^6",
    ),
    "reminded": dict(
        codes=["unscaled-injection"],
        law="linear",
        loops=8,
        layers=1,
        level="easy",
        kind="language",
        watch="Reminded.forward:x",
        place={"unscaled-injection": ["x = x + self.again(e)|again"]},
        mend="edit",
        why="an orthogonal map of the embedding, added N times; branches right",
    ),
    "inside": dict(
        codes=[],
        loops=8,
        layers=2,
        level="medium",
        kind="language",
        watch="Inside.forward:x",
        why="signals enter the branch's input only",
    ),
}
