"""Rounds of message passing over a graph: (nodes, edges) as the batch."""

import torch
from torch import nn


def ring(n=12):
    """A ring with chords: every node has four neighbours."""
    here = torch.arange(n)
    ends = torch.cat([(here + s) % n for s in (1, -1, 3, -3)])
    edges = torch.stack([here.repeat(4), ends])
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(5)), edges


class Sum(nn.Module):
    def __init__(self, rounds=7, d=24):
        super().__init__()
        self.lift, self.message, self.out, self.rounds = nn.Linear(6, d), nn.Linear(d, d), nn.Linear(d, 3), rounds
        nn.init.orthogonal_(self.message.weight)

    def forward(self, nodes, edges):
        h, (source, target) = self.lift(nodes), edges
        for _ in range(self.rounds):
            got = torch.zeros_like(h).index_add(0, target, self.message(h)[source])
            h = nn.functional.leaky_relu(got, 0.2)
        return self.out(h)


class Mean(nn.Module):
    """Mean over the neighbours, then tanh of an orthogonal map: the size cannot run away."""

    def __init__(self, rounds=7, d=24):
        super().__init__()
        self.lift, self.message, self.out, self.rounds = nn.Linear(6, d), nn.Linear(d, d), nn.Linear(d, 3), rounds
        nn.init.orthogonal_(self.message.weight)

    def forward(self, nodes, edges):
        h, (source, target) = torch.tanh(self.lift(nodes)), edges
        degree = torch.bincount(target, minlength=len(nodes)).unsqueeze(-1)
        for _ in range(self.rounds):
            got = torch.zeros_like(h).index_add(0, target, h[source]) / degree
            h = torch.tanh(self.message(got))
        return self.out(h)


class Residual(nn.Module):
    """Messages are summed straight into the stream by index_add_."""

    def __init__(self, rounds=8, d=24, eps=1.0):
        super().__init__()
        self.lift, self.norm, self.out = nn.Linear(6, d), nn.LayerNorm(d), nn.Linear(d, 3)
        self.message = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, d))
        self.rounds = rounds

    def forward(self, nodes, edges):
        h, (source, target) = self.lift(nodes), edges
        for _ in range(self.rounds):
            n = self.norm(h)
            h = h.index_add(0, target, self.message(torch.cat([n[source], n[target]], -1)))
        return self.out(h)


def summed(rounds=7):
    return Sum(rounds), ring()


def averaged(rounds=7):
    return Mean(rounds), ring()


def residual(rounds=8):
    return Residual(rounds), ring()


TRUTHS = {
    "summed": dict(
        codes=["expanding-map"],
        law="exponential",
        loops=7,
        level="medium",
        kind="graph",
        watch="Sum.forward:h",
        place={"expanding-map": ["message|index_add(0, target, self.message(h)|h = nn.functional.leaky_relu"]},
        why="four neighbours are summed, no skip",
    ),
    "averaged": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=7,
        level="medium",
        kind="graph",
        watch="Mean.forward:h",
        why="tanh and the mean bound the state: a note at most",
    ),
    "residual": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="hard",
        kind="graph",
        watch="Residual.forward:h",
        place={"unscaled-residual": ["h = h.index_add(0, target|message"]},
        mend="either",
        why="index_add is the addition, eps = 1",
    ),
}
