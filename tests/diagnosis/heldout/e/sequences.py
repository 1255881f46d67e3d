"""Scans over time inside loops over depth, cells over depth, decays over depth."""

import torch
import torch.nn.functional as F
from torch import nn


def heinsen_scan(log_a, log_b):
    """h_t = a_t h_{t-1} + b_t by logarithms."""
    a_star = log_a.cumsum(1)
    return torch.exp(a_star + torch.logcumsumexp(log_b - a_star, dim=1))


class MinGRU(nn.Module):
    def __init__(self, dim, expansion=1.5):
        super().__init__()
        inner = int(dim * expansion)
        self.to_hidden_and_gate, self.to_out = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)

    def forward(self, x):
        hidden, gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)
        positive = torch.where(hidden >= 0, hidden + 0.5, torch.sigmoid(hidden))
        return self.to_out(heinsen_scan(-F.softplus(gate), -F.softplus(-gate) + positive.log()))


class MinGRULM(nn.Module):
    """conv, minGRU, feed-forward, each added; one such layer for the whole depth."""

    def __init__(self, num_tokens=64, dim=32, depth=6, ff_mult=2, residual=1.0):
        super().__init__()
        self.token_emb, self.to_logits = nn.Embedding(num_tokens, dim), nn.Linear(dim, num_tokens)
        self.norm, self.rnn, self.ff_norm = nn.RMSNorm(dim), MinGRU(dim), nn.RMSNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, dim * ff_mult), nn.GELU(), nn.Linear(dim * ff_mult, dim))
        self.depth, self.residual = depth, residual

    def forward(self, ids):
        x = self.token_emb(ids)
        for _ in range(self.depth):
            x = self.residual * self.rnn(self.norm(x)) + x
            x = self.residual * self.ff(self.ff_norm(x)) + x
        return self.to_logits(x)


class GatedDeltaNet(nn.Module):
    """A delta rule with a gate, as a loop over tokens; keys of length one, an output gate, a short convolution."""

    def __init__(self, d, heads=2):
        super().__init__()
        self.h = heads
        self.q, self.k, self.v, self.g, self.o = (nn.Linear(d, d, bias=False) for _ in range(5))
        self.ab, self.conv, self.norm = (
            nn.Linear(d, 2 * heads),
            nn.Conv1d(d, d, 3, groups=d, padding=2),
            nn.RMSNorm(d // heads),
        )

    def forward(self, u):
        B, T, D = u.shape
        c = F.silu(self.conv(u.mT)[..., :T].mT)
        q, k, v = (f(c).view(B, T, self.h, -1) for f in (self.q, self.k, self.v))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        alpha, beta = self.ab(u).sigmoid().chunk(2, -1)
        S, outs = u.new_zeros(B, self.h, D // self.h, D // self.h), []
        for t in range(T):
            S = S * alpha[:, t, :, None, None]
            err = v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t])
            S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], err * beta[:, t, :, None])
            outs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
        y = self.norm(torch.stack(outs, 1)) * F.silu(self.g(u)).view(B, T, self.h, -1)
        return self.o(y.reshape(B, T, D))


class LoopedDelta(nn.Module):
    def __init__(self, recurrence=5, d=24):
        super().__init__()
        self.emb, self.unemb = nn.Embedding(64, d), nn.Linear(d, 64)
        self.mixer, self.mlp = GatedDeltaNet(d), nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
        self.pre = nn.ModuleList([nn.RMSNorm(d), nn.RMSNorm(d)])
        self.recurrence = recurrence

    def forward(self, tokens):
        stream, r = self.emb(tokens), self.recurrence
        for _ in range(r):
            stream = stream + self.mixer(self.pre[0](stream)) / r
            stream = stream + self.mlp(self.pre[1](stream)) / r
        return self.unemb(stream)


class RetentiveDepth(nn.Module):
    """Retention's decays, 1 - 2^(-5 - i), over depth: channel i keeps that part of itself at each visit. With 32 channels the last ones are 1 in single precision."""

    def __init__(self, depth=10, d=32):
        super().__init__()
        self.register_buffer("gamma", 1 - 2.0 ** (-5 - torch.arange(d, dtype=torch.float32)))
        self.read, self.f, self.write, self.depth = (
            nn.Linear(5, d),
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)),
            nn.Linear(d, 2),
            depth,
        )

    def forward(self, x):
        h = self.read(x)
        for _ in range(self.depth):
            h = self.gamma * h + self.f(h) / self.depth
        return self.write(h)


class Parcae(nn.Module):
    """A stable loop: the state decays by exp(-dt softplus(a)) in each channel and takes dt of the input; norm on the input once; branches by 1/N."""

    def __init__(self, loops=8, d=32):
        super().__init__()
        self.loops, self.emb, self.head = loops, nn.Embedding(64, d), nn.Linear(d, 64)
        self.in_norm, self.norm, self.ff = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d)),
        )
        self.a, self.log_dt = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.full((d,), -0.3))

    def forward(self, idx):
        e, dt = self.in_norm(self.emb(idx)), self.log_dt.exp()
        keep = torch.exp(-dt * F.softplus(self.a))
        h = e
        for _ in range(self.loops):
            h = keep * h + (1 - keep) * e
            h = h + self.ff(self.norm(h)) / self.loops
        return self.head(h)


class DepthLSTM(nn.Module):
    """An LSTM cell that is unrolled over depth, not time; it hears the mean of its neighbours."""

    def __init__(self, steps=7, d=24):
        super().__init__()
        self.embed, self.cell, self.out, self.steps = nn.Linear(4, d), nn.LSTMCell(2 * d, d), nn.Linear(d, 4), steps

    def forward(self, points):
        B, T, _ = points.shape
        e = self.embed(points)
        h, c = e.flatten(0, 1), torch.zeros_like(e).flatten(0, 1)
        for _ in range(self.steps):
            around = h.view(B, T, -1).mean(1, keepdim=True).expand(-1, T, -1)
            h, c = self.cell(torch.cat([e, around], -1).flatten(0, 1), (h, c))
        return self.out(h.view(B, T, -1))


class Settling(nn.Module):
    """A rectified recurrent net that hears the same input at each step; identity-like start with noise on top, which is too much for it."""

    def __init__(self, steps=8, d=32):
        super().__init__()
        self.rnn, self.out, self.steps = nn.RNNCell(5, d, nonlinearity="relu"), nn.Linear(d, 2), steps
        nn.init.normal_(self.rnn.weight_hh, std=2.6 * d**-0.5)
        nn.init.zeros_(self.rnn.bias_hh), nn.init.zeros_(self.rnn.bias_ih)

    def forward(self, x):
        h = F.relu(x @ self.rnn.weight_ih.mT)
        for _ in range(self.steps):
            h = self.rnn(x, h)
        return self.out(h)


class Feature(nn.Module):
    """Linear attention with relu features, normalised by the sum of keys, without a small number below: the first tokens divide nothing by nothing."""

    def __init__(self, loops=4, d=32, heads=8):
        super().__init__()
        self.emb, self.qkv, self.o, self.heads, self.loops = (
            nn.Embedding(64, d),
            nn.Linear(d, 3 * d),
            nn.Linear(d, d),
            heads,
            loops,
        )
        self.ln, self.head = nn.LayerNorm(d), nn.Linear(d, 64)

    def linear_attention(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        q, k = q.relu(), k.relu()
        kv = torch.einsum("bthi,bthj->bthij", k, v).cumsum(1)
        den = torch.einsum("bthi,bthi->bth", q, k.cumsum(1))
        return self.o((torch.einsum("bthi,bthij->bthj", q, kv) / den[..., None]).flatten(2))

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(self.loops):
            x = x + self.linear_attention(self.ln(x)) / self.loops
        return self.head(x)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(13))


def mingru(depth=6):
    return MinGRULM(depth=depth)


def mingru_scaled(depth=6):
    return MinGRULM(depth=depth, residual=1 / depth)


def delta(recurrence=5):
    return LoopedDelta(recurrence)


def retention(depth=10):
    return RetentiveDepth(depth), seeded(6, 5)


def parcae(loops=8):
    return Parcae(loops)


def lstm(steps=7):
    return DepthLSTM(steps), seeded(2, 6, 4)


def settling(steps=8):
    return Settling(steps), seeded(6, 5)


def relu_features(loops=4):
    return Feature(loops)


TRUTHS = {
    "mingru": dict(
        codes=["unscaled-residual"],
        loops=6,
        layers=1,
        level="medium",
        kind="sequence",
        watch="MinGRULM.forward:x",
        place={"unscaled-residual": ["x = self.residual * self.rnn|rnn"]},
        why="full updates over depth; the scan over time is inside the branch",
    ),
    "mingru_scaled": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="sequence",
        watch="MinGRULM.forward:x",
        why="the same by 1/N",
    ),
    "delta": dict(
        codes=[],
        loops=5,
        layers=1,
        level="hard",
        kind="sequence",
        watch="LoopedDelta.forward:stream",
        why="1/N over depth; sixteen steps over time inside the branch",
    ),
    "retention": dict(
        codes=["marginal-decay"],
        loops=10,
        level="hard",
        kind="decay",
        watch="RetentiveDepth.forward:h",
        why="1 - 2^-25 and nearer to one are 1.0 in single precision; the branch has 1/N",
    ),
    "parcae": dict(
        codes=[],
        may=["norm-bounded"],
        loops=8,
        level="hard",
        kind="injection",
        watch="Parcae.forward:h",
        why="what the decay takes away the input gives back, and no more; branches by 1/N",
    ),
    "lstm": dict(
        codes=[],
        may=["norm-bounded"],
        loops=7,
        level="hard",
        kind="cell",
        watch="DepthLSTM.forward:h",
        why="a gated cell of bounded output",
    ),
    "settling": dict(
        codes=["expanding-map"],
        law="exponential",
        loops=8,
        level="medium",
        kind="cell",
        watch="Settling.forward:h",
        why="2.6 times what a matrix may be, half of which a ReLU takes: no skip, no norm",
    ),
    "relu_features": dict(
        codes=["nonfinite"],
        level="medium",
        kind="finite",
        watch="Feature.forward:x",
        place={"nonfinite": ["return self.o((torch.einsum|den = torch.einsum"]},
        why="0/0 where no feature of a query and a key are both above zero",
    ),
}
