"""Recurrences over depth: cells, integrators, pairs of states, sums of the past, energies."""

import torch
import torch.nn.functional as F
from torch import nn


def fresh(d, wide=2, gain=1.0):
    f = nn.Sequential(nn.Linear(d, wide * d), nn.GELU(), nn.Linear(wide * d, d))
    with torch.no_grad():
        f[2].weight.mul_(gain)
    return f


class Base(nn.Module):
    def __init__(self, loops, d=32, gain=1.0):
        super().__init__()
        self.wte, self.ln, self.f, self.unembed = (
            nn.Embedding(72, d),
            nn.LayerNorm(d),
            fresh(d, gain=gain),
            nn.Linear(d, 72),
        )
        self.loops = loops

    def forward(self, idx):
        return self.unembed(self.run(self.wte(idx)))


class Cell(Base):
    """A GRU cell over depth; it reads a summary of the other tokens."""

    def __init__(self, loops, d=32):
        super().__init__(loops, d)
        self.read, self.cell = nn.Linear(d, d), nn.GRUCell(d, d)

    def run(self, h):
        b, t, d = h.shape
        for _ in range(self.loops):
            seen = self.read(h.cumsum(1) / torch.arange(1, t + 1)[:, None])
            h = self.cell(seen.reshape(-1, d), h.reshape(-1, d)).view(b, t, d)
        return h


class Heun(Base):
    """Two evaluations a step."""

    def run(self, x):
        dt = 1 / self.loops
        for _ in range(self.loops):
            k1 = self.f(self.ln(x))
            k2 = self.f(self.ln(x + dt * k1))
            x = x + dt / 2 * (k1 + k2)
        return x


class Coupled(Base):
    """Two halves, each updated by the other, as in reversible networks."""

    def __init__(self, loops, d=32):
        super().__init__(loops, d)
        self.F, self.G = (
            nn.Sequential(nn.LayerNorm(d // 2), nn.Linear(d // 2, d), nn.ReLU(), nn.Linear(d, d // 2)) for _ in range(2)
        )

    def run(self, x):
        a, b = x.chunk(2, -1)
        eps = 1 / self.loops
        for _ in range(self.loops):
            a = a + eps * self.F(b)
            b = b + eps * self.G(a)
        return torch.cat([a, b], -1)


class Blend(Base):
    """A convex step towards a normed candidate."""

    def run(self, x):
        for _ in range(self.loops):
            x = torch.lerp(x, F.layer_norm(self.f(x), x.shape[-1:]), 0.3)
        return x


class Momentum(Base):
    """Heavy ball at full size."""

    def run(self, x):
        v = torch.zeros_like(x)
        for _ in range(self.loops):
            v = 0.5 * v + self.f(self.ln(x))
            x = x + v
        return x


class Past(Base):
    """Each state is the sum of all states before it and an update."""

    def run(self, x):
        history = [x]
        for _ in range(self.loops):
            total = sum(history)
            history.append(total + self.f(self.ln(total)) / self.loops)
        return history[-1]


class PastMean(Base):
    """The branch reads the mean of all states before; the stream takes the update at 1/N."""

    def run(self, x):
        history = [x]
        for _ in range(self.loops):
            read = torch.stack(history).mean(0)
            history.append(history[-1] + self.f(self.ln(read)) / self.loops)
        return history[-1]


class Fibonacci(Base):
    """Two streams, each adds the other as it is."""

    def run(self, x):
        a, b = x, torch.zeros_like(x)
        for _ in range(self.loops):
            a, b = a + b, a + self.f(self.ln(a)) / self.loops
        return a


class Linear(Base):
    """h <- W h and nothing else."""

    def __init__(self, loops, d=32):
        super().__init__(loops, d)
        self.W = nn.Parameter(torch.empty(d, d))
        nn.init.orthogonal_(self.W, gain=1.4)

    def run(self, h):
        for _ in range(self.loops):
            h = h @ self.W
        return torch.tanh(h)


class Adapter(Base):
    """The input comes in through one matrix over [h, e], which starts as [1, 1]: an addition inside a product."""

    def __init__(self, loops, d=32):
        super().__init__(loops, d)
        self.merge = nn.Linear(2 * d, d, bias=False)
        with torch.no_grad():
            self.merge.weight.copy_(torch.cat([torch.eye(d), torch.eye(d)], 1))

    def run(self, e):
        h = e
        for _ in range(self.loops):
            h = self.merge(torch.cat([h, e], -1))
            h = h + self.f(self.ln(h)) / self.loops
        return h


class Energy(Base):
    """Gradient descent on an energy of the state, with a graph."""

    def __init__(self, loops, d=32):
        super().__init__(loops, d)
        self.memory = nn.Parameter(torch.randn(48, d) * d**-0.5)

    def run(self, x):
        with torch.enable_grad():
            for _ in range(self.loops):
                x = x if x.requires_grad else x.requires_grad_()
                energy = (0.5 * x.pow(2) - 0).sum() - torch.logsumexp(x @ self.memory.T, -1).sum()
                (slope,) = torch.autograd.grad(energy, x, create_graph=True)
                x = x - slope / self.loops
        return x


class FromNothing(Base):
    """The state starts at zero; the input is read inside the branch."""

    def __init__(self, loops, d=32):
        super().__init__(loops, d)
        self.join = nn.Linear(2 * d, d)

    def run(self, e):
        h = torch.zeros_like(e)
        for _ in range(self.loops):
            h = h + self.f(self.join(torch.cat([self.ln(h), e], -1))) / self.loops
        return h


def cell(loops=8):
    return Cell(loops)


def heun(loops=5):
    return Heun(loops)


def coupled(loops=6):
    return Coupled(loops)


def blend(loops=6):
    return Blend(loops)


def momentum(loops=8):
    return Momentum(loops, gain=2.0)


def past(loops=5):
    return Past(loops)


def past_mean(loops=7):
    return PastMean(loops)


def fibonacci(loops=8):
    return Fibonacci(loops)


def linear(loops=9):
    return Linear(loops)


def adapter(loops=8):
    return Adapter(loops)


def energy(loops=6):
    return Energy(loops)


def from_nothing(loops=6):
    return FromNothing(loops)


TRUTHS = {
    "cell": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=8,
        level="medium",
        kind="cell",
        watch="Cell.run:h",
        why="a gated convex step: contractive; a note at most",
    ),
    "heun": dict(
        codes=[],
        level="hard",
        kind="integrator",
        watch="Heun.run:x",
        why="steps of dt = 1/N; N may be seen as its evaluations",
    ),
    "coupled": dict(
        codes=[], loops=6, level="hard", kind="streams", watch="Coupled.run:a", why="two streams, updates at 1/N"
    ),
    "blend": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=6,
        level="medium",
        kind="gate",
        watch="Blend.run:x",
        why="0.7 of the state and 0.3 of a normed one: bounded",
    ),
    "momentum": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        level="hard",
        kind="integrator",
        watch="Momentum.run:x",
        place={"unscaled-residual": ["v = 0.5 * v + self.f|x = x + v|f"]},
        why="updates at full size, twice summed",
    ),
    "past": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=5,
        level="hard",
        kind="whole past",
        watch="Past.run:total",
        place={"nested-skip": ["total = sum(history)|history.append(total + self.f"]},
        why="the sum of the past doubles",
    ),
    "past_mean": dict(
        codes=[],
        loops=7,
        level="medium",
        kind="whole past",
        watch="PastMean.run:read",
        why="a mean is read, 1/N is added",
    ),
    "fibonacci": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=8,
        level="hard",
        kind="streams",
        watch="Fibonacci.run:a",
        place={"nested-skip": ["a, b = a + b"]},
        why="1.618 a visit, from skips alone",
    ),
    "linear": dict(
        codes=["expanding-map"],
        law="exponential",
        loops=9,
        level="easy",
        kind="map",
        watch="Linear.run:h",
        place={"expanding-map": ["W|h = h @ self.W"]},
        why="radius 1.4, no skip",
    ),
    "adapter": dict(
        codes=["unscaled-injection"],
        law="linear",
        loops=8,
        level="hard",
        kind="injection",
        watch="Adapter.run:h",
        place={"unscaled-injection": ["merge|h = self.merge"]},
        why="h + e, in one matrix: N times e",
    ),
    "energy": dict(
        codes=["norm-bounded"],
        other=[],
        loops=6,
        level="hard",
        kind="equilibrium",
        watch="Energy.run:x",
        why="descent on a convex well shrinks the state towards the memories",
    ),
    "from_nothing": dict(
        codes=[],
        loops=6,
        level="hard",
        kind="injection",
        watch="FromNothing.run:h",
        why="from zero to one f over all visits; the input enters the branch",
    ),
}
