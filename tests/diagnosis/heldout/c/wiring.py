"""Transformers with other wiring: streams that are mixed, reversed, cycled, prefixed, remembered; norms now and then."""

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations


class MHSA(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.to_qkv, self.proj, self.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads

    def forward(self, x, prefix=None):
        q, k, v = self.to_qkv(x).chunk(3, -1)
        if prefix is not None:
            k = torch.cat([prefix[0].expand(len(x), -1, -1), k], 1)
            v = torch.cat([prefix[1].expand(len(x), -1, -1), v], 1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def ffn(d):
    return nn.Sequential(nn.Linear(d, 3 * d), nn.SiLU(), nn.Linear(3 * d, d))


class HyperConnected(nn.Module):
    """Four streams; what a visit keeps is a mixture by `residual`, it reads a convex one and writes to all by 1/N."""

    def __init__(self, rate, d=24, n=4):
        super().__init__()
        self.tok, self.lm_head, self.rate, self.n = nn.Embedding(40, d), nn.Linear(d, 40), rate, n
        self.norm, self.f = nn.RMSNorm(d), ffn(d)
        self.h_pre, self.h_post, self.h_res = (nn.Parameter(torch.randn(s)) for s in ((n,), (n,), (n, n)))

    def residual(self):
        raise NotImplementedError

    def forward(self, ids):
        streams = self.tok(ids)[..., None, :].expand(-1, -1, self.n, -1)
        for _ in range(self.rate):
            read = (self.h_pre.softmax(0)[:, None] * streams).sum(-2)
            write = 2 * torch.sigmoid(self.h_post)[:, None] * self.f(self.norm(read)).unsqueeze(-2)
            streams = self.residual() @ streams + write / self.rate
        return self.lm_head(streams.mean(-2))


class Manifold(HyperConnected):
    """mHC: twenty rounds of Sinkhorn and Knopp make the mixture doubly stochastic."""

    def residual(self):
        m = self.h_res.exp()
        for _ in range(20):
            m = m / m.sum(0, keepdim=True)
            m = m / m.sum(1, keepdim=True)
        return m


class Leaky(HyperConnected):
    """The identity and a fifth of every other stream: rows sum to 1.6."""

    def residual(self):
        return torch.eye(self.n) + 0.2 * (1 - torch.eye(self.n)) + 0.0 * self.h_res


class Reversible(nn.Module):
    """Reformer's pair: attention of one half is added to the other, then the feed-forward back."""

    def __init__(self, n_rev=10, d=32):
        super().__init__()
        self.embed, self.to_out, self.n_rev = nn.Embedding(40, d), nn.Linear(2 * d, 40), n_rev
        self.f = nn.Sequential(nn.LayerNorm(d), MHSA(d))
        self.g = nn.Sequential(nn.LayerNorm(d), ffn(d))
        for p in itertools.chain(self.f.parameters(), self.g.parameters()):
            if p.ndim > 1:
                nn.init.xavier_uniform_(p, gain=1.6)

    def forward(self, ids):
        pair = (self.embed(ids),) * 2
        for _ in range(self.n_rev):
            x1, x2 = pair
            y1 = x1 + self.f(x2)
            pair = y1, x2 + self.g(y1)
        return self.to_out(torch.cat(pair, -1))


class Cycle(nn.Module):
    """Two blocks take turns, as MobileLLM-like code does with itertools; 1/(N sqrt 2)."""

    def __init__(self, turns=5, d=32):
        super().__init__()
        self.embed, self.unembed, self.turns = nn.Embedding(40, d), nn.Linear(d, 40), turns
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(d), "mix": MHSA(d), "post": nn.LayerNorm(d), "mlp": ffn(d)})
            for _ in range(2)
        )

    def forward(self, ids):
        x = self.embed(ids)
        eps = 1 / (self.turns * len(self.blocks) ** 0.5)
        for block in itertools.islice(itertools.cycle(self.blocks), self.turns * len(self.blocks)):
            x = x + eps * block["mix"](block["norm"](x))
            x = x + eps * block["mlp"](block["post"](x))
        return self.unembed(x)


class Prefixed(nn.Module):
    """Every visit has key and value vectors of its own before the shared ones; everything else is shared."""

    def __init__(self, visits=6, d=32):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(40, d), nn.Linear(d, 40)
        self.prefix = nn.ParameterList(nn.Parameter(torch.zeros(2, 3, d)) for _ in range(visits))
        self.n1, self.n2, self.attn, self.ff = nn.LayerNorm(d), nn.LayerNorm(d), MHSA(d), ffn(d)

    def forward(self, ids):
        x = self.embed(ids)
        for prefix in self.prefix:
            x = x + self.attn(self.n1(x), prefix) / len(self.prefix)
            x = x + self.ff(self.n2(x)) / len(self.prefix)
        return self.unembed(x)


class NowAndThen(nn.Module):
    """Full updates; the stream itself is normed after every third visit."""

    def __init__(self, depth=12, d=32):
        super().__init__()
        self.embed, self.unembed, self.depth = nn.Embedding(40, d), nn.Linear(d, 40), depth
        self.norm, self.attn, self.ff = nn.LayerNorm(d), MHSA(d), ffn(d)

    def forward(self, ids):
        x = self.embed(ids)
        for n in range(self.depth):
            x = x + self.ff(x + self.attn(x))
            if n % 3 == 2:
                x = self.norm(x)
        return self.unembed(x)


class SharedMatrices(nn.Module):
    """Layers as modules of their own; the matrices of all are those of the first, biases and norms are private."""

    def __init__(self, depth=5, d=32):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(40, d), nn.Linear(d, 40)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), ffn(d)) for _ in range(depth))
        for layer in self.layers:
            for mine, first in zip(layer[1], self.layers[0][1]):
                if isinstance(mine, nn.Linear):
                    mine.weight = first.weight
                    nn.init.zeros_(mine.bias)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x) / len(self.layers)
        return self.unembed(x)


class Spectral(nn.Module):
    """Matrices of spectral norm 1, kept so by a power iteration at each step of training."""

    def __init__(self, reps=7, d=32):
        super().__init__()
        self.embed, self.unembed, self.reps = nn.Embedding(40, d), nn.Linear(d, 40), reps
        self.ln, self.a, self.b = (
            nn.LayerNorm(d),
            parametrizations.spectral_norm(nn.Linear(d, 2 * d)),
            parametrizations.spectral_norm(nn.Linear(2 * d, d)),
        )

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.reps):
            x = torch.add(x, self.b(torch.tanh(self.a(self.ln(x)))), alpha=1 / self.reps)
        return self.unembed(x)


class Functional(nn.Module):
    """The block is called with its parameters from outside, as meta-learning code does; block and loop both keep the stream."""

    def __init__(self, inner_steps=6, d=32):
        super().__init__()
        self.embed, self.unembed, self.inner_steps = nn.Embedding(40, d), nn.Linear(d, 40), inner_steps
        self.block = nn.Sequential(nn.LayerNorm(d), ffn(d))

    def forward(self, ids):
        params = dict(self.block.named_parameters())

        def block(h):
            return h + functional_call(self.block, params, (h,)) / self.inner_steps

        def outer(h, left):
            return h if left == 0 else outer(h + block(h), left - 1)

        return self.unembed(outer(self.embed(ids), self.inner_steps))


class Padded(nn.Module):
    """Attention with a mask over padding; the second sentence of the batch has no token at all."""

    def __init__(self, loops=6, d=32):
        super().__init__()
        self.embed, self.unembed, self.loops = nn.Embedding(40, d), nn.Linear(d, 40), loops
        self.n1, self.n2, self.q, self.k, self.v, self.ff = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, d),
            nn.Linear(d, d),
            nn.Linear(d, d),
            ffn(d),
        )

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        for _ in range(self.loops):
            y = self.n1(x)
            scores = self.q(y) @ self.k(y).mT * x.shape[-1] ** -0.5
            scores = scores.masked_fill(attention_mask[:, None] == 0, float("-inf"))
            x = x + scores.softmax(-1) @ self.v(y) / self.loops
            x = x + self.ff(self.n2(x)) / self.loops
        return self.unembed(x)


class Remembering(nn.Module):
    """A recurrent memory transformer: memory tokens go from segment to segment, every segment is read once, by 1/segments."""

    def __init__(self, segment=4, d=32, m=3):
        super().__init__()
        self.embed, self.unembed, self.segment = nn.Embedding(40, d), nn.Linear(d, 40), segment
        self.memory, self.m = nn.Parameter(torch.randn(m, d)), m
        self.n1, self.n2, self.attn, self.ff = nn.LayerNorm(d), nn.LayerNorm(d), MHSA(d), ffn(d)

    def forward(self, ids):
        parts = self.embed(ids).split(self.segment, 1)
        memory, told = self.memory.expand(len(ids), -1, -1), []
        for part in parts:
            x = torch.cat([memory, part], 1)
            x = x + self.attn(self.n1(x)) / len(parts)
            x = x + self.ff(self.n2(x)) / len(parts)
            memory, out = x[:, : self.m], x[:, self.m :]
            told.append(out)
        return self.unembed(torch.cat(told, 1))


class Raven(nn.Module):
    """Huginn's shape: prelude, a random first state, an adapter over [state, input], a core with four norms, coda."""

    def __init__(self, mean_recurrence=6, d=32):
        super().__init__()
        self.wte, self.ln_f, self.lm_head = nn.Embedding(40, d), nn.RMSNorm(d), nn.Linear(d, 40, bias=False)
        self.prelude, self.core, self.coda = (
            nn.ModuleDict({"a": MHSA(d), "m": ffn(d), "n": nn.ModuleList(nn.RMSNorm(d) for _ in range(4))})
            for _ in range(3)
        )
        self.adapter, self.mean_recurrence = nn.Linear(2 * d, d, bias=False), mean_recurrence

    @staticmethod
    def block(p, x):
        n1, n2, n3, n4 = p["n"]
        x = n2(x + p["a"](n1(x)))
        return n4(x + p["m"](n3(x)))

    def forward(self, input_ids, num_steps=None):
        e = self.block(self.prelude, self.wte(input_ids))
        s = torch.randn_like(e)
        for _ in range(num_steps or self.mean_recurrence):
            s = self.block(self.core, self.adapter(torch.cat([s, e], -1)))
        return self.lm_head(self.ln_f(self.block(self.coda, s)))


@dataclass
class Settings:
    hidden: int = 32
    vocab: int = 40
    schedule: dict = field(default_factory=lambda: {"depth": 8})


class SmallStart(nn.Module):
    """GPT's embedding of deviation 0.02 and updates of ordinary size by 1/N: the stream grows from nearly nothing, to the same size at any N."""

    def __init__(self, cfg):
        super().__init__()
        d = cfg.hidden
        self.cfg, self.wte, self.head = cfg, nn.Embedding(cfg.vocab, d), nn.Linear(d, cfg.vocab)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.n1, self.n2, self.attn, self.ff = nn.LayerNorm(d), nn.LayerNorm(d), MHSA(d), ffn(d)

    def forward(self, ids):
        x = self.wte(ids)
        depth = self.cfg.schedule["depth"]
        for _ in range(depth):
            x = x + self.attn(self.n1(x)) / depth
            x = x + self.ff(self.n2(x)) / depth
        return self.head(x)


def manifold(rate=6):
    return Manifold(rate)


def leaky(rate=6):
    return Leaky(rate)


def reversible(n_rev=10):
    return Reversible(n_rev)


def cycle(turns=5):
    return Cycle(turns)


def prefixed(visits=6):
    return Prefixed(visits)


def now_and_then(depth=12):
    return NowAndThen(depth)


def shared_matrices(depth=5):
    return SharedMatrices(depth)


def spectral(reps=7):
    return Spectral(reps)


def functional(inner_steps=6):
    return Functional(inner_steps)


def padded(loops=6):
    ids = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 7:] = 0
    mask[1] = 0
    return Padded(loops), {"input_ids": ids * mask, "attention_mask": mask}


def remembering():
    return Remembering()


def raven(mean_recurrence=6):
    return Raven(mean_recurrence)


def small_start(depth=8):
    return SmallStart(Settings(schedule={"depth": depth}))


TRUTHS = {
    "manifold": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="streams",
        watch="HyperConnected.forward:streams",
        why="a doubly stochastic mixture keeps the mean of the streams, 1/N is written",
    ),
    "leaky": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=6,
        layers=1,
        level="hard",
        kind="streams",
        watch="HyperConnected.forward:streams",
        place={"nested-skip": ["streams = self.residual()|return torch.eye(self.n) + 0.2"]},
        why="rows that sum to 1.6: the streams are added to one another at every visit",
    ),
    "reversible": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=10,
        level="medium",
        kind="streams",
        watch="Reversible.forward:y1",
        mend="either",
        place={"unscaled-residual": ["y1 = x1 + self.f(x2)|f"]},
        why="both halves take full updates",
    ),
    "cycle": dict(
        codes=[],
        loops=5,
        layers=2,
        level="medium",
        kind="order",
        watch="Cycle.forward:x",
        why="two blocks in turns by 1/(5 sqrt 2)",
    ),
    "prefixed": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="adapter",
        watch="Prefixed.forward:x",
        why="prefixes are private by design, all start at zero by a formula; the branches have 1/N",
    ),
    "now_and_then": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=12,
        level="medium",
        kind="norm",
        watch="NowAndThen.forward:x",
        why="a norm of the stream after every third visit sets its size",
    ),
    "shared_matrices": dict(
        codes=[],
        loops=5,
        layers=1,
        level="hard",
        kind="tying",
        watch="SharedMatrices.forward:x",
        why="the matrices are shared, biases and norms private by design and alike at first by a formula; 1/N",
    ),
    "spectral": dict(
        codes=[],
        loops=7,
        layers=1,
        level="medium",
        kind="norm",
        watch="Spectral.forward:x",
        why="norms of weights bound no stream; 1/N",
    ),
    "functional": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=6,
        layers=1,
        level="hard",
        kind="code style",
        watch="Functional.forward.<locals>.outer:h",
        place={"nested-skip": ["return h if left == 0 else outer(h + block(h)|return h + functional_call"]},
        why="the stream is kept twice: it doubles at every visit",
    ),
    "padded": dict(
        codes=["nonfinite"],
        level="medium",
        kind="finite",
        watch="Padded.forward:x",
        place={"nonfinite": ["x = x + scores.softmax"]},
        why="a softmax over nothing but -inf is NaN: the second sentence is all padding",
    ),
    "remembering": dict(
        codes=[],
        loops=4,
        layers=1,
        level="hard",
        kind="memory",
        watch="Remembering.forward:memory",
        why="the memory takes 1/4 of each update over four segments; every segment comes in once",
    ),
    "raven": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=6,
        level="medium",
        kind="recurrent depth",
        watch="Raven.forward:s",
        why="a norm on the stream ends each visit",
    ),
    "small_start": dict(
        codes=[],
        loops=8,
        layers=1,
        level="hard",
        kind="initialisation",
        watch="SmallStart.forward:x",
        why="it grows from almost nothing to one branch, at any N the same: 1/N is right",
    ),
}
