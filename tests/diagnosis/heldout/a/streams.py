"""Several residual streams side by side."""

import torch
from torch import nn


def branch(d):
    return nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))


class Streams(nn.Module):
    def __init__(self, loops, d=32, n=3):
        super().__init__()
        self.emb, self.f, self.head, self.loops, self.n = nn.Embedding(50, d), branch(d), nn.Linear(d, 50), loops, n
        self.mix, self.read = nn.Parameter(3 * torch.eye(n)), nn.Parameter(torch.zeros(n))

    def begin(self, ids):
        return self.emb(ids).unsqueeze(2).repeat(1, 1, self.n, 1)


class Mixed(Streams):
    """Rows of the mixing matrix and the weights of the reading sum to 1."""

    def forward(self, ids):
        s = self.begin(ids)
        for _ in range(self.loops):
            x = torch.einsum("n,btnd->btd", self.read.softmax(0), s)
            s = torch.einsum("mn,btnd->btmd", self.mix.softmax(-1), s) + self.f(x).unsqueeze(2) / self.loops
        return self.head(s.mean(2))


class Summed(Streams):
    """Reads the sum, the layer keeps its skip, and every stream gets the result."""

    def forward(self, ids):
        s = self.begin(ids)
        for _ in range(self.loops):
            x = s.sum(2)
            y = x + self.f(x) / self.loops
            s = s + y.unsqueeze(2)
        return self.head(s.mean(2))


class Written(Streams):
    """Reads the mean, writes at full size."""

    def forward(self, ids):
        s = self.begin(ids)
        for _ in range(self.loops):
            s = s + self.f(s.mean(2)).unsqueeze(2)
        return self.head(s.mean(2))


def mixed(loops=6):
    return Mixed(loops)


def summed(loops=4):
    return Summed(loops)


def written(loops=12):
    return Written(loops)


TRUTHS = {
    "mixed": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="streams",
        watch="Mixed.forward:s",
        why="convex mixtures keep the size, the update is 1/N",
    ),
    "summed": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=4,
        layers=1,
        level="hard",
        kind="streams",
        watch="Summed.forward:s",
        place={"nested-skip": ["x = s.sum(2)|y = x + self.f(x)|s = s + y.unsqueeze(2)"]},
        why="s <- s + sum(s): factor 4 a visit",
    ),
    "written": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=12,
        layers=1,
        level="medium",
        kind="streams",
        watch="Written.forward:s",
        mend="either",
        place={"unscaled-residual": ["s = s + self.f(s.mean(2)).unsqueeze(2)|f"]},
        why="eps = 1 to all streams",
    ),
}
