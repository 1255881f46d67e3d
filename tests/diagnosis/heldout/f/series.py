"""Forecasting with MLP-Mixers. One author uses loopscale's Loop and repeats it; another fused the block into a Function; one runs in bf16."""

import torch
from torch import nn

import loopscale as ls


class Transposed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


def mlp(d, hidden):
    return nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))


class TSMixer(nn.Module):
    def __init__(self, length=20, features=32, rounds=6, horizon=4):
        super().__init__()
        self.lift = nn.Linear(6, features)
        time = ls.ScaledResidual(Transposed(mlp(length, 40)), norm=nn.LayerNorm(features))
        feature = ls.ScaledResidual(mlp(features, 64), norm=nn.LayerNorm(features))
        self.core = ls.Loop(nn.Sequential(time, feature), loops=2, layers=1)
        self.rounds = rounds
        self.project = nn.Linear(length, horizon)

    def forward(self, series):
        x = self.lift(series)
        for _ in range(self.rounds):
            x = self.core(x)
        return self.project(x.transpose(1, 2)).transpose(1, 2)


class FusedResidualMLP(torch.autograd.Function):
    """x + gelu-free MLP of the normed x in one call (stands for a kernel): y = x + silu(n @ w1) @ w2, n = x / rms(x)."""

    @staticmethod
    def forward(ctx, x, w1, w2):
        r = x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        n = x * r
        a = n @ w1
        s = torch.sigmoid(a)
        ctx.save_for_backward(n, r, a, s, w1, w2)
        return x + (a * s) @ w2

    @staticmethod
    def backward(ctx, grad):
        n, r, a, s, w1, w2 = ctx.saved_tensors
        u = a * s
        gu = grad @ w2.T
        ga = gu * (s + u * (1 - s))
        gn = ga @ w1.T
        gx = grad + r * (gn - n * (gn * n).mean(-1, keepdim=True))
        flat = lambda t: t.reshape(-1, t.shape[-1])  # noqa: E731
        return gx, flat(n).T @ flat(ga), flat(u).T @ flat(grad)


class FusedForecaster(nn.Module):
    def __init__(self, features=32, hidden=96, n_iter=8):
        super().__init__()
        self.lift, self.drop = nn.Linear(6, features), nn.Linear(features, 6)
        self.w1 = nn.Parameter(torch.randn(features, hidden) * features**-0.5)
        self.w2 = nn.Parameter(torch.randn(hidden, features) * hidden**-0.5 * 2)
        self.n_iter = n_iter

    def forward(self, series):
        h = self.lift(series)
        for _ in range(self.n_iter):
            h = FusedResidualMLP.apply(h, self.w1, self.w2)
        return self.drop(h)


class HalfForecaster(nn.Module):
    """Everything in bfloat16 to save memory; many small steps."""

    def __init__(self, features=32, steps=48, vocab=70):
        super().__init__()
        self.levels, self.steps = nn.Embedding(vocab, features), steps
        self.norm, self.up, self.down = nn.RMSNorm(features), nn.Linear(features, 96), nn.Linear(96, features)
        self.head = nn.Linear(features, vocab)
        self.to(torch.bfloat16)

    def forward(self, levels):
        h = self.levels(levels) * 3.0
        for _ in range(self.steps):
            h = h + self.down(torch.nn.functional.silu(self.up(self.norm(h)))) / self.steps
        return self.head(self.norm(h)).float()


def _series():
    return torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(121)).cumsum(1) / 4


def loop_repeated():
    return TSMixer(), _series()


def fused_function(n_iter=8):
    return FusedForecaster(n_iter=n_iter), _series()


def half_forecaster(steps=48):
    return HalfForecaster(steps=steps), torch.randint(0, 70, (2, 16), generator=torch.Generator().manual_seed(122))


TRUTHS = {
    "loop_repeated": dict(
        codes=["miscounted-loops"],
        watch="TSMixer.forward:x",
        kind="wrong N",
        level="medium",
        why="the Loop scales for its own 2 visits, the model calls it 6 times: 12 visits at eps 1/2",
    ),
    "fused_function": dict(
        codes=["growth-unexplained"],
        other=["unscaled-residual"],
        loops=8,
        watch="FusedForecaster.forward:h",
        kind="hidden",
        level="hard",
        why="the addition lies inside of a custom Function: the growth can be seen, its cause cannot, unless one looks inside",
    ),
    "half_forecaster": dict(
        codes=["bf16-absorbed"],
        loops=48,
        layers=1,
        watch="HalfForecaster.forward:h",
        kind="precision",
        level="medium",
        why="most elements of the stream stay as they are when a forty-eighth of a branch is added in bf16",
    ),
}
