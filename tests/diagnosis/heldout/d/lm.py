"""Language models after public training code: scalars on the stream, skips across the middle, multipliers, tied by hand."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


class CausalSelfAttention(nn.Module):
    def __init__(self, dim, n_head=2):
        super().__init__()
        self.c_q, self.c_k, self.c_v, self.c_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.n_head = n_head

    def forward(self, x):
        q, k, v = (norm(m(x).unflatten(-1, (self.n_head, -1))).transpose(1, 2) for m in (self.c_q, self.c_k, self.c_v))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x):
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.attn, self.mlp = CausalSelfAttention(dim), MLP(dim)

    def forward(self, x, s=1.0, t=None):
        x = x + s * self.attn(norm(x))
        return x + (s if t is None else t) * self.mlp(norm(x))


class Base(nn.Module):
    def __init__(self, n=8, dim=32, vocab=64, n_block=1):
        super().__init__()
        self.n, self.wte, self.lm_head = n, nn.Embedding(vocab, dim), nn.Linear(dim, vocab, bias=False)
        self.h = nn.ModuleList(Block(dim) for _ in range(n_block))

    def forward(self, idx):
        x = self.run(norm(self.wte(idx)))
        return 15 * torch.tanh(self.lm_head(norm(x)) / 15)


class Lambdas(Base):
    """resid_lambdas and x0_lambdas, a pair for each visit, as in nanochat."""

    def __init__(self, n=16, x0=0.1):
        super().__init__(n)
        self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.ones(n)), nn.Parameter(torch.full((n,), x0))

    def run(self, x):
        x0 = x
        for i in range(self.n):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            x = self.h[0](x, 1 / self.n)
        return x


class MixedBack(Lambdas):
    """The two scalars sum to one, so the embedding comes back without piling up."""

    def run(self, x):
        x0 = x
        for i in range(self.n):
            x = (1 - self.x0_lambdas[i]) * x + self.x0_lambdas[i] * x0
            x = self.h[0](x, 1 / self.n)
        return x


class AcrossTheMiddle(Base):
    """Speedrun GPT: streams of the first half are put on a stack, and taken off and added in the second half; one block, by 1/N."""

    def __init__(self, n=12):
        super().__init__(n)
        self.skip_weights = nn.Parameter(torch.ones(n // 2))

    def run(self, x):
        skips = []
        for i in range(self.n):
            if i < self.n // 2:
                x = self.h[0](x, 1 / self.n)
                skips.append(x)
            else:
                x = x + self.skip_weights[i - self.n // 2] * skips.pop()
                x = self.h[0](x, 1 / self.n)
        return x


class MiniCPM(Base):
    """Embeddings times scale_emb, branches times scale_depth / sqrt(num_hidden_layers); the number of visits took the place of that of layers."""

    def __init__(self, n=24, scale_emb=12, scale_depth=1.4):
        super().__init__(n)
        for p in self.parameters():
            nn.init.normal_(p, std=0.1)
        self.scale_emb, self.scale_depth = scale_emb, scale_depth

    def forward(self, idx):
        x = self.wte(idx) * self.scale_emb
        for _ in range(self.n):
            x = self.h[0](x, self.scale_depth / self.n**0.5)
        return self.lm_head(norm(x) / (32 / 16))


class Granite(Base):
    """residual_multiplier = 0.22 from the config of a model with forty layers; two layers, visited twelve times."""

    def __init__(self, n=12, residual_multiplier=0.22):
        super().__init__(n, n_block=2)
        for p in self.parameters():
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        self.residual_multiplier = residual_multiplier

    def run(self, x):
        for _ in range(self.n):
            for block in self.h:
                x = block(x, self.residual_multiplier)
        return x


class HalfScaled(Base):
    """1/N on the attention; the MLP was forgotten."""

    def run(self, x):
        for _ in range(self.n):
            x = self.h[0](x, 1 / self.n, 1.0)
        return x


class WrongSide(Base):
    """The factor stands before the stream, not before the branch: every visit keeps an eighth of what was there."""

    def run(self, x):
        for _ in range(self.n):
            x = x / self.n + self.h[0].attn(norm(x))
            x = x / self.n + self.h[0].mlp(norm(x))
        return x


class NormOnce(Base):
    """Normed before the loop and behind it, not inside; the branches read the raw stream."""

    def __init__(self, n=8):
        super().__init__(n, n_block=0)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        for p in self.ff.parameters():
            if p.ndim == 2:
                nn.init.orthogonal_(p)

    def run(self, x):
        for _ in range(self.n):
            x = x + self.ff(x)
        return x


class Steps(Base):
    """Learned step sizes of the visits, a softmax over depth: they sum to one."""

    def __init__(self, n=9):
        super().__init__(n)
        self.logits = nn.Parameter(torch.linspace(0.7, -0.7, n))

    def run(self, x):
        for w in self.logits.softmax(0).unbind():
            x = self.h[0](x, w)
        return x


class Deltas(Base):
    """Two blocks at full size; the loop takes a part of how far they carried the stream."""

    def __init__(self, n=10):
        super().__init__(n, n_block=2)

    def run(self, x):
        for _ in range(self.n):
            y = x
            for block in self.h:
                y = block(y)
            x = torch.lerp(x, y, 1 / self.n)
        return x


class Layers(nn.Module):
    """Layers that are tied by assignment, each with a name of its own in the state dict; 1/N."""

    def __init__(self, n=5, dim=32):
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(64, dim), nn.Linear(dim, 64, bias=False)
        self.layers = nn.ModuleList(Block(dim) for _ in range(n))
        for layer in self.layers[1:]:
            for name, _ in self.layers[0].named_parameters():
                owner, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(owner), leaf, self.layers[0].get_parameter(name))

    def forward(self, idx):
        x = self.wte(idx)
        for layer in self.layers:
            x = layer(x, 1 / len(self.layers))
        return self.lm_head(norm(x))


def lambdas(n=16):
    return Lambdas(n)


def mixed_back(n=16):
    return MixedBack(n)


def across_the_middle(n=12):
    return AcrossTheMiddle(n)


def minicpm(n=24):
    return MiniCPM(n)


def granite(n=12):
    return Granite(n)


def half_scaled(n=8):
    return HalfScaled(n)


def wrong_side(n=8):
    return WrongSide(n)


def norm_once(n=8):
    return NormOnce(n)


def steps(n=9):
    return Steps(n)


def deltas(n=10):
    return Deltas(n)


def tied_by_hand():
    return Layers()


def reloaded():
    """A checkpoint that was cleaned on its way (each tensor made contiguous and copied), loaded with assign=True: the ties are gone."""
    model = Layers()
    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(state, assign=True)
    return fresh


TRUTHS = {
    "lambdas": dict(
        codes=["unscaled-injection"],
        law="linear",
        loops=16,
        layers=1,
        level="hard",
        kind="injection",
        watch="Lambdas.run:x",
        place={"unscaled-injection": ["x = self.resid_lambdas[i] * x + self.x0|x0_lambdas"]},
        why="a tenth of the embedding at each of 16 visits is 1.6 times the embedding; N times a constant",
    ),
    "mixed_back": dict(
        codes=[],
        other=["norm-bounded"],
        loops=16,
        layers=1,
        level="hard",
        kind="injection",
        watch="MixedBack.run:x",
        why="what comes back is taken from what is kept",
    ),
    "across_the_middle": dict(
        codes=["unscaled-injection"],
        other=["nested-skip"],
        loops=12,
        layers=1,
        level="hard",
        kind="outer skip",
        watch="AcrossTheMiddle.run:x",
        place={
            "unscaled-injection": ["x = x + self.skip_weights|skip_weights"],
            "nested-skip": ["x = x + self.skip_weights|skip_weights"],
        },
        why="six earlier streams of the same size and direction are added to the stream: 1 + N/2. By which of two names is open",
    ),
    "minicpm": dict(
        codes=["sqrt-scaled"],
        loops=24,
        layers=1,
        level="hard",
        kind="language",
        watch="MiniCPM.forward:x",
        place={"sqrt-scaled": ["return x + (s if t is|mlp"]},
        why="1.4 / sqrt(N)",
    ),
    "granite": dict(
        codes=["unscaled-residual"],
        other=["sqrt-scaled"],
        loops=12,
        layers=2,
        level="hard",
        kind="wrong N",
        watch="Granite.run:x",
        place={
            "unscaled-residual": ["x = x + s * self.attn|attn", "return x + (s if t is|mlp"],
            "sqrt-scaled": ["x = x + s * self.attn|attn", "return x + (s if t is|mlp"],
        },
        why="0.22 where 1/(12 sqrt 2) is 0.06; it happens to be 1/sqrt(24) as well",
    ),
    "half_scaled": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="medium",
        kind="one branch of two",
        watch="HalfScaled.run:x",
        place={"unscaled-residual": ["return x + (s if t is|mlp"]},
        why="the MLP adds at full size, the attention by 1/N",
    ),
    "wrong_side": dict(
        codes=[],
        other=["norm-bounded"],
        others=[["expanding-map"], ["expanding-map", "norm-bounded"]],
        law="bounded",
        loops=8,
        layers=1,
        level="hard",
        kind="wrong place",
        watch="WrongSide.run:x",
        why="nearly nothing is kept, so nothing piles up: a mistake, and no growth. The map of a visit has a radius of 1.4 and hardly a skip, so its name is as right",
    ),
    "norm_once": dict(
        codes=["unscaled-residual"],
        law="exponential",
        loops=8,
        layers=1,
        level="medium",
        kind="no norm",
        watch="NormOnce.run:x",
        place={"unscaled-residual": ["x = x + self.ff(x)|ff"]},
        why="without a norm before the branch a full update grows with the stream; by 1/N it would be (1 + a/N)^N",
    ),
    "steps": dict(
        codes=[],
        loops=9,
        layers=1,
        level="medium",
        kind="learned factors",
        watch="Steps.run:x",
        why="the step sizes sum to one",
    ),
    "deltas": dict(
        codes=[],
        loops=10,
        layers=2,
        level="medium",
        kind="code style",
        watch="Deltas.run:x",
        why="a tenth of the way that two full blocks go",
    ),
    "tied_by_hand": dict(
        codes=[],
        loops=5,
        layers=1,
        level="medium",
        kind="tying",
        watch="Layers.forward:x",
        why="five modules, one set of parameters; 1/N",
    ),
    "reloaded": dict(
        codes=["untied"],
        other=["untied", "not-looped"],
        level="medium",
        kind="tying",
        watch="Layers.forward:x",
        place={"untied": ["layers"]},
        why="equal copies that no longer share memory",
    ),
}
