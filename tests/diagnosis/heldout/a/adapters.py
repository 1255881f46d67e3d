"""What is private to a visit: adapters, embeddings, norms, and copies that should not be."""

import copy

import torch
from torch import nn


class LoRA(nn.Module):
    """One matrix for all visits and a low-rank correction for each, which starts at nothing."""

    def __init__(self, n_in, n_out, visits, rank=2):
        super().__init__()
        self.base = nn.Linear(n_in, n_out)
        self.a = nn.Parameter(torch.randn(visits, rank, n_in) * n_in**-0.5)
        self.b = nn.Parameter(torch.zeros(visits, n_out, rank))

    def forward(self, x, visit):
        return self.base(x) + x @ self.a[visit].mT @ self.b[visit].mT


class Relaxed(nn.Module):
    def __init__(self, visits=6, d=32):
        super().__init__()
        self.emb, self.norm, self.head = nn.Embedding(50, d), nn.RMSNorm(d), nn.Linear(d, 50)
        self.up, self.down, self.visits = LoRA(d, 2 * d, visits), LoRA(2 * d, d, visits), visits

    def forward(self, ids):
        x = self.emb(ids)
        for v in range(self.visits):
            x = x + (1 / self.visits) * self.down(torch.nn.functional.silu(self.up(self.norm(x), v)), v)
        return self.head(x)


class Labelled(nn.Module):
    """An embedding of the visit's number goes into the stream."""

    def __init__(self, visits=9, d=32):
        super().__init__()
        self.emb, self.which, self.norm = nn.Embedding(50, d), nn.Embedding(visits, d), nn.LayerNorm(d)
        self.f, self.head, self.visits = (
            nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)),
            nn.Linear(d, 50),
            visits,
        )

    def forward(self, ids):
        x = self.emb(ids)
        for v in range(self.visits):
            x = x + self.which.weight[v]
            x = x + self.f(self.norm(x)) / self.visits
        return self.head(x)


def block(d=32):
    return nn.ModuleDict(
        {"norm": nn.LayerNorm(d), "f": nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))}
    )


class Copies(nn.Module):
    """Meant to be one block used six times; deepcopy made six."""

    def __init__(self, times=6, d=32):
        super().__init__()
        shared = block(d)
        self.emb, self.head = nn.Embedding(50, d), nn.Linear(d, 50)
        self.blocks = nn.ModuleList(copy.deepcopy(shared) for _ in range(times))

    def forward(self, ids):
        x = self.emb(ids)
        for b in self.blocks:
            x = x + b["f"](b["norm"](x)) / len(self.blocks)
        return self.head(x)


class OwnNorms(nn.Module):
    """The matrices are shared; each visit has its own norm, all of which start at one."""

    def __init__(self, times=6, d=32):
        super().__init__()
        self.emb, self.head, self.f = nn.Embedding(50, d), nn.Linear(d, 50), block(d)["f"]
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(times))
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(d)) for _ in range(times))

    def forward(self, ids):
        x = self.emb(ids)
        for norm, gain in zip(self.norms, self.gains):
            x = x + gain * self.f(norm(x)) / len(self.norms)
        return self.head(x)


def relaxed():
    return Relaxed()


def labelled():
    return Labelled()


def copies(times=6):
    return Copies(times)


def own_norms():
    return OwnNorms()


TRUTHS = {
    "relaxed": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="adapter",
        watch="Relaxed.forward:x",
        why="private adapters are meant, their zero start hides no branch; eps = 1/N",
    ),
    "labelled": dict(
        codes=["unscaled-injection"],
        loops=9,
        layers=1,
        level="medium",
        kind="adapter",
        watch="Labelled.forward:x",
        place={"unscaled-injection": ["x = x + self.which.weight[v]|which"]},
        mend="edit",
        why="nine random vectors as large as the embedding: sqrt(1 + 9) times the stream",
    ),
    "copies": dict(
        codes=["untied"],
        other=["untied", "not-looped"],
        level="easy",
        kind="tying",
        watch="Copies.forward:x",
        place={"untied": ["blocks"]},
        why="deepcopies, equal at construction",
    ),
    "own_norms": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="adapter",
        watch="OwnNorms.forward:x",
        why="norms and gains equal by their formula are private by design; eps = 1/N",
    ),
}
