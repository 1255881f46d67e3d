"""perceiver with one set of weights for all iterations, in a functional wrapper style: exists, default, PreNorm(fn), Residual(fn)."""

from functools import wraps

import torch
from torch import einsum, nn


def exists(val):
    return val is not None


def default(val, d):
    return val if exists(val) else d


def cache_fn(f):
    cache = None

    @wraps(f)
    def cached_fn(*args, _cache=True, **kwargs):
        if not _cache:
            return f(*args, **kwargs)
        nonlocal cache
        if cache is None:
            cache = f(*args, **kwargs)
        return cache

    return cached_fn


class PreNorm(nn.Module):
    def __init__(self, dim, fn, context_dim=None):
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim) if exists(context_dim) else None

    def forward(self, x, **kwargs):
        x = self.norm(x)
        if exists(self.norm_context):
            kwargs.update(context=self.norm_context(kwargs["context"]))
        return self.fn(x, **kwargs)


class Residual(nn.Module):
    def __init__(self, fn, scale=1.0):
        super().__init__()
        self.fn, self.scale = fn, scale

    def forward(self, x, **kwargs):
        return self.fn(x, **kwargs) * self.scale + x


class GEGLU(nn.Module):
    def forward(self, x):
        x, gates = x.chunk(2, dim=-1)
        return x * nn.functional.gelu(gates)


def FeedForward(dim, mult=2):
    return nn.Sequential(nn.Linear(dim, dim * mult * 2), GEGLU(), nn.Linear(dim * mult, dim))


class Attention(nn.Module):
    def __init__(self, query_dim, context_dim=None, heads=2, dim_head=16):
        super().__init__()
        inner_dim, context_dim = dim_head * heads, default(context_dim, query_dim)
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, inner_dim * 2, bias=False)
        self.to_out = nn.Linear(inner_dim, query_dim)

    def forward(self, x, context=None):
        q = self.to_q(x)
        k, v = self.to_kv(default(context, x)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attn = (einsum("b h i d, b h j d -> b h i j", q, k) * self.scale).softmax(dim=-1)
        out = einsum("b h i j, b h j d -> b h i d", attn, v).transpose(1, 2).flatten(2)
        return self.to_out(out)


class Perceiver(nn.Module):
    def __init__(self, *, iterations, input_dim=12, num_latents=8, dim=32, scale=None, wrap=True, again=False):
        super().__init__()
        scale = default(scale, 1.0 / iterations)
        maybe = (lambda fn: Residual(fn, scale)) if wrap else (lambda fn: fn)
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        get_cross = cache_fn(lambda: maybe(PreNorm(dim, Attention(dim, input_dim), context_dim=input_dim)))
        get_ff = cache_fn(lambda: maybe(PreNorm(dim, FeedForward(dim))))
        self.layers = nn.ModuleList([])
        for _ in range(iterations):
            self.layers.append(nn.ModuleList([get_cross(_cache=True), get_ff(_cache=True)]))
        self.again, self.scale, self.wrap = again, scale, wrap
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 5))

    def forward(self, data, mask=None):
        x = self.latents.expand(data.shape[0], -1, -1)
        for cross, ff in self.layers:
            if self.wrap and self.again:
                x = cross(x, context=data) + x
                x = ff(x) + x
            elif self.wrap:
                x = cross(x, context=data)
                x = ff(x)
            else:
                x = x + (cross(x, context=data) + ff(x)) * self.scale
        return self.to_logits(x.mean(dim=-2))


def _points():
    return torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(5))


def perceiver_twice(iterations=6):
    return Perceiver(iterations=iterations, again=True), _points()


def perceiver_parallel(iterations=6):
    return Perceiver(iterations=iterations, wrap=False), _points()


TRUTHS = {
    "perceiver_twice": dict(
        codes=["nested-skip"],
        loops=6,
        law="exponential",
        watch="Perceiver.forward:x",
        place={"nested-skip": ["x = cross(x, context=data) + x|x = ff(x) + x"]},
        kind="outer skip",
        level="medium",
        why="Residual(fn) returns fn(x)/N + x, and the loop adds x again: 4-fold an iteration, by both lines",
    ),
    "perceiver_parallel": dict(
        codes=[],
        loops=6,
        layers=1,
        watch="Perceiver.forward:x",
        kind="outer skip",
        level="medium",
        why="the same line, but the wrappers are left off: the blocks give branches only, and they are divided by N",
    ),
}
