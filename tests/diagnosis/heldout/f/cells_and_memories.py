"""Two that are no networks of layers: a neural cellular automaton that fires at random, and a memory that is read until it settles."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class CAModel(nn.Module):
    def __init__(self, channel_n=16, fire_rate=0.5, hidden_size=48, steps=12):
        super().__init__()
        self.channel_n, self.fire_rate, self.steps = channel_n, fire_rate, steps
        self.fc0, self.fc1 = nn.Linear(channel_n * 3, hidden_size), nn.Linear(hidden_size, channel_n, bias=False)

    def alive(self, x):
        return F.max_pool2d(x[:, 3:4, :, :], kernel_size=3, stride=1, padding=1) > 0.1

    def perceive(self, x):
        dx = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8.0
        filters = torch.stack([dx, dx.T])[:, None].repeat(self.channel_n, 1, 1, 1)
        y = F.conv2d(x, filters, padding=1, groups=self.channel_n)
        return torch.cat((x, y), 1)

    def update(self, x, step_size):
        pre_life_mask = self.alive(x)
        y = self.perceive(x).permute(0, 2, 3, 1)
        dx = self.fc1(F.relu(self.fc0(y))) * step_size
        stochastic = (torch.rand((*dx.shape[:-1], 1)) > self.fire_rate).float()
        x = x + (dx * stochastic).permute(0, 3, 1, 2)
        life_mask = (pre_life_mask & self.alive(x)).float()
        return x * life_mask

    def forward(self, x, steps=None):
        steps = steps or self.steps
        for _ in range(steps):
            x = self.update(x, 1.0 / steps)
        return x[:, :4]


class HopfieldReader(nn.Module):
    """xi <- softmax(beta q(xi) K^T) K over a learned store, `num_reads` times (dense associative memory)."""

    def __init__(self, d=32, slots=40, beta=None, num_reads=5, classes=6):
        super().__init__()
        self.embed = nn.Linear(10, d)
        self.store = nn.Parameter(torch.randn(slots, d))
        self.lookup = nn.Linear(d, d, bias=False)
        self.beta, self.num_reads = beta or 1 / d**0.5, num_reads
        nn.init.orthogonal_(self.lookup.weight)
        self.readout = nn.Linear(d, classes)

    def forward(self, query):
        xi = self.embed(query)
        for _ in range(self.num_reads):
            association = F.softmax(self.beta * self.lookup(xi) @ self.store.T, dim=-1)
            xi = association @ self.store
        return self.readout(xi)


def automaton(steps=12):
    return CAModel(steps=steps), torch.rand(2, 16, 12, 12, generator=torch.Generator().manual_seed(141))


def hopfield(num_reads=5):
    return HopfieldReader(num_reads=num_reads), torch.randn(3, 10, generator=torch.Generator().manual_seed(142))


TRUTHS = {
    "automaton": dict(
        codes=[],
        loops=12,
        watch="CAModel.forward:x",
        kind="cellular automaton",
        level="hard",
        why="each update is divided by the steps and falls on a random half of the cells, in both modes; dead cells are cut off",
    ),
    "hopfield": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=5,
        watch="HopfieldReader.forward:xi",
        kind="memory",
        level="medium",
        why="each read is a mean of stored patterns, however large the query is",
    ),
}
