"""Two encodings at once: Siamese nets with a feature pyramid; additive coupling of two halves with context; sets with a mask."""

import torch
from torch import nn
from torch.nn import functional as F


class Backbone(nn.Module):
    def __init__(self, w=16):
        super().__init__()
        self.c1, self.c2, self.c3 = (nn.Conv2d(i, w, 3, 2, 1) for i in (3, w, w))
        self.lateral = nn.ModuleList(nn.Conv2d(w, w, 1) for _ in range(3))

    def forward(self, x):
        x = F.gelu(self.c1(x))
        y = F.gelu(self.c2(x))
        z = F.gelu(self.c3(y))
        p5 = self.lateral[2](z)
        p4 = self.lateral[1](y) + F.interpolate(p5, scale_factor=2)
        p3 = self.lateral[0](x) + F.interpolate(p4, scale_factor=2)
        return [p3, p4, p5]


class SiamesePyramid(nn.Module):
    """One backbone for both pictures, one head (num_repeats convs) for all three levels."""

    def __init__(self, w=16, num_repeats=2):
        super().__init__()
        self.backbone = Backbone(w)
        self.head = nn.Sequential(*[m for _ in range(num_repeats) for m in (nn.Conv2d(w, w, 3, 1, 1), nn.GELU())])
        self.embed = nn.Linear(3 * w, 32)

    def encode(self, x):
        levels = [self.head(p).mean((-2, -1)) for p in self.backbone(x)]
        return F.normalize(self.embed(torch.cat(levels, -1)), dim=-1)

    def forward(self, anchor, other):
        a, b = self.encode(anchor), self.encode(other)
        return a @ b.T / 0.07


class Coupling(nn.Module):
    def __init__(self, half, ctx):
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(half), nn.LayerNorm(half)
        self.f = nn.Sequential(nn.Linear(half, 64), nn.SiLU(), nn.Linear(64, half))
        self.g = nn.Sequential(nn.Linear(half, 64), nn.SiLU(), nn.Linear(64, half))
        self.cond = nn.Linear(ctx, half)
        for net in (self.f, self.g):
            nn.init.xavier_uniform_(net[2].weight, gain=2.0)

    def forward(self, x, context):
        a, b = x.chunk(2, dim=-1)
        a = a + self.f(self.norm_b(b)) + self.cond(context)
        b = b + self.g(self.norm_a(a))
        return torch.cat([a, b], dim=-1)

    def inverse(self, x, context):
        a, b = x.chunk(2, dim=-1)
        b = b - self.g(self.norm_a(a))
        a = a - self.f(self.norm_b(b)) - self.cond(context)
        return torch.cat([a, b], dim=-1)


class ConditionalFlow(nn.Module):
    """Volume-preserving flow: the same additive coupling K times, reversible, so no activations need to be kept."""

    def __init__(self, dim=32, ctx=12, K=8):
        super().__init__()
        self.K, self.coupling = K, Coupling(dim // 2, ctx)

    def forward(self, x, context):
        for _ in range(self.K):
            x = self.coupling(x, context)
        return x


class SetBlock(nn.Module):
    def __init__(self, d, h=2):
        super().__init__()
        self.h, self.q, self.kv, self.o = h, nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.ln0, self.ln1, self.ff = nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, d)

    def forward(self, x, allowed, rate):
        b, n, d = x.shape
        y = self.ln0(x)
        q = self.q(y).view(b, n, self.h, -1).transpose(1, 2)
        k, v = self.kv(y).view(b, n, 2, self.h, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
        x = x + rate * self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))
        return x + rate * F.relu(self.ff(self.ln1(x)))


class OrderedSet(nn.Module):
    """Each element looks at the elements before it (strictly), `reps` times."""

    def __init__(self, d=24, reps=5):
        super().__init__()
        self.inp, self.block, self.reps, self.out = nn.Linear(3, d), SetBlock(d), reps, nn.Linear(d, 1)

    def forward(self, points):
        n = points.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril(-1)
        x = self.inp(points)
        for _ in range(self.reps):
            x = self.block(x, allowed, 1 / self.reps)
        return self.out(x)


def _two():
    g = torch.Generator().manual_seed(131)
    return torch.randn(4, 3, 16, 16, generator=g), torch.randn(4, 3, 16, 16, generator=g)


def siamese_pyramid():
    return SiamesePyramid(), _two()


def coupling_flow(K=8):
    g = torch.Generator().manual_seed(132)
    return ConditionalFlow(K=K), (torch.randn(4, 32, generator=g), torch.randn(4, 12, generator=g))


def strictly_before(reps=5):
    return OrderedSet(reps=reps), torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(133))


TRUTHS = {
    "siamese_pyramid": dict(
        codes=["not-looped"],
        watch="SiamesePyramid.encode:x",
        kind="two networks",
        level="medium",
        why="backbone and head act several times, on two pictures and three levels, never on their own result",
    ),
    "coupling_flow": dict(
        codes=["unscaled-injection", "unscaled-residual"],
        loops=8,
        watch="ConditionalFlow.forward:x",
        place={
            "unscaled-injection": ["a = a + self.f(self.norm_b(b)) + self.cond(context)|cond"],
            "unscaled-residual": ["b = b + self.g(self.norm_a(a))|coupling.g"],
        },
        kind="two faults",
        level="hard",
        why="both halves get a branch with eps = 1, the first half the context's projection as well; either alone grows the stream",
    ),
    "strictly_before": dict(
        codes=["nonfinite"],
        watch="OrderedSet.forward:x",
        kind="finite",
        level="medium",
        why="the first element has nothing before it: a row of -inf, and softmax gives nan from the first visit on",
    ),
}
