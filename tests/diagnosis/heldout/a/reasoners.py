"""Loops that think: two time scales, fixed points, latents, decoders, early exits, truncated gradients."""

import random
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


def net(d, wide=2):
    return nn.Sequential(nn.Linear(d, wide * d), nn.GELU(), nn.Linear(wide * d, d))


class PostBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mix, self.mlp = nn.Conv1d(d, d, 3, padding=1), net(d)

    def forward(self, x):
        x = F.rms_norm(x + self.mix(x.mT).mT, (x.shape[-1],))
        return F.rms_norm(x + self.mlp(x), (x.shape[-1],))


class TwoClocks(nn.Module):
    """A slow and a fast state; all cycles but the last pair run without gradients."""

    def __init__(self, slow=3, fast=2, d=32):
        super().__init__()
        self.emb, self.high, self.low, self.head = nn.Embedding(60, d), PostBlock(d), PostBlock(d), nn.Linear(d, 60)
        self.register_buffer("z_high", torch.randn(d))
        self.register_buffer("z_low", torch.randn(d))
        self.slow, self.fast = slow, fast

    def forward(self, ids):
        e = self.emb(ids)
        zh, zl = self.z_high.expand_as(e), self.z_low.expand_as(e)
        with torch.no_grad():
            for i in range(self.slow):
                for j in range(self.fast):
                    if not (i == self.slow - 1 and j == self.fast - 1):
                        zl = self.low(zl + zh + e)
                if i < self.slow - 1:
                    zh = self.high(zh + zl)
        zl = self.low(zl + zh + e)
        zh = self.high(zh + zl)
        return self.head(zh)


class FixedPoint(nn.Module):
    """Iterate to a tolerance without gradients, then one step with."""

    def __init__(self, d=32, limit=40, tol=1e-3):
        super().__init__()
        self.inp, self.W, self.out = nn.Linear(8, d), nn.Linear(d, d, bias=False), nn.Linear(d, 4)
        nn.init.orthogonal_(self.W.weight, gain=0.6)
        self.limit, self.tol = limit, tol

    def f(self, z, u):
        return torch.tanh(self.W(z) + u)

    def forward(self, x):
        u = self.inp(x)
        with torch.no_grad():
            z = torch.zeros_like(u)
            for _ in range(self.limit):
                new = self.f(z, u)
                gap = (new - z).norm() / (new.norm() + 1e-9)
                z = new
                if gap < self.tol:
                    break
        return self.out(self.f(z, u))


class Latents(nn.Module):
    """Latent vectors read the input by cross-attention at every visit, with the same weights."""

    def __init__(self, d=32, count=6, reads=6):
        super().__init__()
        self.emb, self.latents, self.reads = nn.Embedding(60, d), nn.Parameter(torch.randn(count, d)), reads
        self.cross, self.own = (nn.MultiheadAttention(d, 2, batch_first=True) for _ in range(2))
        self.n_in, self.n1, self.n2, self.n3 = (nn.LayerNorm(d) for _ in range(4))
        self.ff, self.cls = net(d), nn.Linear(d, 5)

    def forward(self, ids):
        data = self.n_in(self.emb(ids))
        z, eps = self.latents.expand(len(ids), -1, -1), 1 / self.reads
        for _ in range(self.reads):
            z = z + eps * self.cross(self.n1(z), data, data)[0]
            q = self.n2(z)
            z = z + eps * self.own(q, q, q)[0]
            z = z + eps * self.ff(self.n3(z))
        return self.cls(z.mean(1))


class Restart(nn.Module):
    """Every visit reads the embedding, the results are averaged: an ensemble of one."""

    def __init__(self, visits=6, d=32):
        super().__init__()
        self.emb, self.norm, self.f, self.head, self.visits = (
            nn.Embedding(60, d),
            nn.LayerNorm(d),
            net(d),
            nn.Linear(d, 60),
            visits,
        )

    def forward(self, ids):
        x = self.emb(ids)
        seen = []
        for _ in range(self.visits):
            h = x + self.f(self.norm(x)) / self.visits
            seen.append(h)
        return self.head(torch.stack(seen).mean(0))


class Unread(nn.Module):
    """The refined state is computed, the head reads the state from before."""

    def __init__(self, steps=6, d=32):
        super().__init__()
        self.emb, self.first, self.norm, self.f, self.head = (
            nn.Embedding(60, d),
            net(d),
            nn.LayerNorm(d),
            net(d),
            nn.Linear(d, 60),
        )
        self.steps = steps

    def forward(self, ids):
        x = self.emb(ids)
        x = x + self.first(x)
        refined = x
        for _ in range(self.steps):
            refined = refined + self.f(self.norm(refined)) / self.steps
        return self.head(x)


class Configured(nn.Module):
    """`n_loops` in the config, six visits in the code."""

    def __init__(self, config, d=32):
        super().__init__()
        self.config, self.emb, self.norm, self.f, self.head = (
            config,
            nn.Embedding(60, d),
            nn.LayerNorm(d),
            net(d),
            nn.Linear(d, 60),
        )
        self.passes = 6

    def forward(self, ids):
        h = self.emb(ids)
        for _ in range(self.passes):
            h = h + self.f(self.norm(h)) / self.passes
        return self.head(h)


class Limited(nn.Module):
    """`max_iterations` is a ceiling, `steps` is the number; both are honest."""

    def __init__(self, steps=7, d=32):
        super().__init__()
        self.emb, self.norm, self.f, self.head = nn.Embedding(60, d), nn.LayerNorm(d), net(d), nn.Linear(d, 60)
        self.steps, self.max_iterations = steps, 64

    def forward(self, ids, steps=None):
        count = min(steps or self.steps, self.max_iterations)
        h = self.emb(ids)
        for _ in range(count):
            h = h + self.f(self.norm(h)) / count
        return SimpleNamespace(logits=self.head(h), steps=count).logits


class LastTwo(nn.Module):
    """Truncated backpropagation: the state is cut before the last two visits."""

    def __init__(self, steps=8, keep=2, d=32):
        super().__init__()
        self.emb, self.norm, self.f, self.head = nn.Embedding(60, d), nn.LayerNorm(d), net(d), nn.Linear(d, 60)
        self.steps, self.keep = steps, keep

    def forward(self, ids):
        h = self.emb(ids)
        for i in range(self.steps):
            if i == self.steps - self.keep:
                h = h.detach()
            h = h + self.f(self.norm(h)) / self.steps
        return self.head(h)


class Clocked(nn.Module):
    """A diffusion-like loop: an embedding of the time is added to the state at every step."""

    def __init__(self, steps=8, d=32):
        super().__init__()
        self.inp, self.norm, self.f, self.out, self.steps = (
            nn.Linear(8, d),
            nn.LayerNorm(d),
            net(d),
            nn.Linear(d, 8),
            steps,
        )
        self.time = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        nn.init.normal_(self.time[2].weight, std=0.5)

    def at(self, t):
        angle = t * torch.exp(-torch.arange(16) / 4)
        return self.time(torch.cat([angle.sin(), angle.cos()]))

    def forward(self, x):
        h = self.inp(x)
        for i in range(self.steps):
            h = h + self.at(i / self.steps)
            h = h + self.f(self.norm(h)) / self.steps
        return self.out(h)


class Sampled(nn.Module):
    """Two to four visits while training, ten in evaluation."""

    def __init__(self, d=32):
        super().__init__()
        self.emb, self.norm, self.f, self.head = nn.Embedding(60, d), nn.LayerNorm(d), net(d), nn.Linear(d, 60)

    def forward(self, ids):
        n = random.randint(2, 4) if self.training else 10
        h = self.emb(ids)
        for _ in range(n):
            h = h + self.f(self.norm(h)) / n
        return self.head(h)


def numbers():
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


def two_clocks():
    return TwoClocks()


def fixed_point(limit=40):
    return FixedPoint(limit=limit), numbers()


def latents(reads=6):
    return Latents(reads=reads)


def restart(visits=6):
    return Restart(visits)


def unread(steps=6):
    return Unread(steps)


def configured(n_loops=6):
    return Configured(SimpleNamespace(n_loops=n_loops, width=32))


def limited(steps=7):
    return Limited(steps)


def last_two(steps=8):
    return LastTwo(steps)


def clocked(steps=8):
    return Clocked(steps), numbers()


def sampled():
    return Sampled()


TRUTHS = {
    "two_clocks": dict(
        codes=["norm-bounded", "truncated-gradient"],
        law="bounded",
        level="hard",
        kind="two time scales",
        watch="TwoClocks.forward:zh",
        why="post-norm; one visit of each net has a gradient",
    ),
    "fixed_point": dict(
        codes=["norm-bounded", "truncated-gradient", "halts-early"],
        law="bounded",
        loops=12,
        level="hard",
        kind="equilibrium",
        watch="FixedPoint.f:z",
        count="FixedPoint.f",
        why="radius 0.6, so 1e-3 is met before 40; the last step alone has a gradient",
    ),
    "latents": dict(
        codes=[],
        loops=6,
        level="medium",
        kind="reader",
        watch="Latents.forward:z",
        why="three branches at 1/N; the input is read through attention only",
    ),
    "restart": dict(
        codes=["restarts"],
        loops=6,
        level="medium",
        kind="restart",
        watch="Restart.forward:h",
        place={"restarts": ["h = x + self.f(self.norm(x))|f"]},
        why="nothing is handed on",
    ),
    "unread": dict(
        codes=["idle-loop"],
        loops=6,
        level="medium",
        kind="idle loop",
        watch="Unread.forward:refined",
        place={"idle-loop": ["f"]},
        why="the output does not depend on the loop",
    ),
    "configured": dict(
        codes=["knob-without-effect"],
        loops=6,
        layers=1,
        level="medium",
        kind="knob",
        watch="Configured.forward:h",
        place={"knob-without-effect": ["n_loops"]},
        why="config.n_loops is never read; eps follows the real number",
    ),
    "limited": dict(
        codes=[],
        loops=7,
        layers=1,
        level="hard",
        kind="knob",
        watch="Limited.forward:h",
        why="a ceiling of 64 may change without effect; steps is the knob",
    ),
    "last_two": dict(
        codes=["truncated-gradient"],
        loops=8,
        layers=1,
        level="easy",
        kind="truncation",
        watch="LastTwo.forward:h",
        why="the gradient reaches 2 of 8 visits",
    ),
    "clocked": dict(
        codes=["unscaled-injection"],
        loops=8,
        layers=1,
        level="medium",
        kind="time signal",
        watch="Clocked.forward:h",
        place={"unscaled-injection": ["h = h + self.at|time"]},
        mend="edit",
        why="a smooth function of time is nearly the same vector at every step, added N times",
    ),
    "sampled": dict(
        codes=["train-eval-differ"],
        loops=10,
        layers=1,
        level="medium",
        kind="sampled loops",
        watch="Sampled.forward:h",
        why="3 visits on average in training, 10 in evaluation; eps follows each",
    ),
}
