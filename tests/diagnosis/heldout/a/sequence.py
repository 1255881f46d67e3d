"""Looped layers without attention: a selective scan, a carry, long convolutions by FFT, retention."""

import torch
import torch.nn.functional as F
from torch import nn


class Scan(nn.Module):
    """A loop over time inside each visit of the loop over depth."""

    def __init__(self, d):
        super().__init__()
        self.x_proj, self.dt, self.out = nn.Linear(d, 2 * d), nn.Linear(d, d), nn.Linear(d, d)
        self.A_log = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        u, z = self.x_proj(x).chunk(2, -1)
        decay = torch.exp(-F.softplus(self.dt(u)) * self.A_log.exp())
        state, out = torch.zeros_like(u[:, 0]), []
        for t in range(u.shape[1]):
            state = decay[:, t] * state + (1 - decay[:, t]) * u[:, t]
            out.append(state)
        return self.out(torch.stack(out, 1) * F.silu(z))


class LoopedMamba(nn.Module):
    def __init__(self, n_loop=6, d=32):
        super().__init__()
        self.emb, self.norm, self.mixer, self.n_loop = nn.Embedding(80, d), nn.RMSNorm(d), Scan(d), n_loop
        self.norm_f, self.lm_head = nn.RMSNorm(d), nn.Linear(d, 80, bias=False)

    def forward(self, input_ids):
        hidden = self.emb(input_ids)
        for _ in range(self.n_loop):
            hidden = hidden + self.mixer(self.norm(hidden)) / self.n_loop
        return self.lm_head(self.norm_f(hidden))


class Carry(nn.Module):
    """h <- a h + eps f(h), a = exp(-softplus(raw)) below 1 by construction."""

    def __init__(self, raw, loops=8, d=32):
        super().__init__()
        self.emb, self.norm, self.out = nn.Embedding(80, d), nn.LayerNorm(d), nn.Linear(d, 80)
        self.f, self.raw, self.loops = (
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)),
            nn.Parameter(torch.full((d,), raw)),
            loops,
        )

    def forward(self, ids):
        h = self.emb(ids)
        for _ in range(self.loops):
            keep = torch.exp(-F.softplus(self.raw))
            h = keep * h + self.f(self.norm(h)) / self.loops
        return self.out(h)


class LongConv(nn.Module):
    """Hyena without its many names: an implicit filter as long as the sequence, by FFT, gated."""

    def __init__(self, d, length=16):
        super().__init__()
        self.inp, self.out = nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.filter = nn.Parameter(torch.randn(length, d) / 2)

    def forward(self, x):
        u, gate = self.inp(x).chunk(2, -1)
        n = 2 * x.shape[1]
        y = torch.fft.irfft(torch.fft.rfft(u, n, dim=1) * torch.fft.rfft(self.filter[: x.shape[1]], n, dim=0), n, dim=1)
        return self.out(y[:, : x.shape[1]] * (1 + gate))


class Hyena(nn.Module):
    def __init__(self, repeat=10, d=32):
        super().__init__()
        self.emb, self.norm, self.op = nn.Embedding(80, d), nn.LayerNorm(d), LongConv(d)
        self.repeat, self.head = repeat, nn.Linear(d, 80)

    def forward(self, ids):
        x = self.emb(ids)
        i = 0
        while i < self.repeat:
            x = self.op(self.norm(x)) + x
            i += 1
        return self.head(x)


class Retention(nn.Module):
    """Linear attention with a fixed decay; the norm stands after the addition."""

    def __init__(self, depth=6, d=32):
        super().__init__()
        self.emb, self.post, self.depth = nn.Embedding(80, d), nn.RMSNorm(d), depth
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.head = nn.Linear(d, 80)
        where = torch.arange(16)
        self.register_buffer("decay", torch.tril(0.9 ** (where[:, None] - where[None]).float()))

    def forward(self, ids):
        x, t = self.emb(ids), ids.shape[1]
        for _ in range(self.depth):
            scores = (self.q(x) @ self.k(x).mT) / 32**0.5 * self.decay[:t, :t]
            x = self.post(x + self.o(scores @ self.v(x)))
        return self.head(x)


def mamba(n_loop=6):
    return LoopedMamba(n_loop)


def marginal(loops=8):
    return Carry(-18.0, loops)


def hyena(repeat=10):
    return Hyena(repeat)


def retention(depth=6):
    return Retention(depth)


TRUTHS = {
    "mamba": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="sequence",
        watch="LoopedMamba.forward:hidden",
        why="the loop over time is inside the branch; eps = 1/N over depth",
    ),
    "marginal": dict(
        codes=["marginal-decay"],
        loops=8,
        layers=1,
        level="medium",
        kind="sequence",
        watch="Carry.forward:h",
        place={"marginal-decay": ["raw|keep = torch.exp|h = keep * h"]},
        why="exp(-1.5e-8) is 1.0 in single precision",
    ),
    "hyena": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=10,
        layers=1,
        level="medium",
        kind="sequence",
        watch="Hyena.forward:x",
        place={"unscaled-residual": ["x = self.op(self.norm(x)) + x|op"]},
        mend="attach",
        why="a while loop, the branch left of the plus, eps = 1",
    ),
    "retention": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=6,
        layers=1,
        level="easy",
        kind="sequence",
        watch="Retention.forward:x",
        why="post-norm",
    ),
}
