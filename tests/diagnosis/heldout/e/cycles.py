"""Loops in loops, loops that stop, loops that are solved, and a loop whose result a mask throws away."""

import torch
import torch.nn.functional as F
from torch import nn


class Mixer(nn.Module):
    """What a cell adds: tokens, then channels, both behind one norm each."""

    def __init__(self, d, tokens=12):
        super().__init__()
        self.n1, self.n2, self.across = nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(tokens, tokens)
        self.fc1, self.fc2 = nn.Linear(d, 3 * d), nn.Linear(3 * d, d)
        for m in (self.across, self.fc1, self.fc2):
            nn.init.xavier_normal_(m.weight, 1.2)

    def forward(self, x, rate=1.0):
        x = x + rate * self.across(self.n1(x).mT).mT
        return x + rate * self.fc2(F.gelu(self.fc1(self.n2(x))))


class Thinker(nn.Module):
    """`cycles` times: `ticks` visits of the quick cell, which reads the slow state, then one visit of the slow cell, which reads the quick one."""

    def __init__(self, cycles=3, ticks=4, d=24):
        super().__init__()
        self.cycles, self.ticks, self.embed, self.answer = cycles, ticks, nn.Embedding(20, d), nn.Linear(d, 20)
        self.quick, self.slow = Mixer(d), Mixer(d)

    def forward(self, grid):
        q = s = self.embed(grid)
        for _ in range(self.cycles):
            for _ in range(self.ticks):
                seen = self.quick(q + s)
                q = q + (seen - q - s) / (self.cycles * self.ticks)
            s = s + (self.slow(s + q) - s - q) / self.cycles
        return self.answer(s)


class Epochs(nn.Module):
    """Six rounds of four visits; the rate is one over the visits of a round."""

    def __init__(self, rounds=6, inner=4, d=24):
        super().__init__()
        self.rounds, self.inner, self.embed, self.answer, self.cell = (
            rounds,
            inner,
            nn.Embedding(20, d),
            nn.Linear(d, 20),
            Mixer(d),
        )

    def forward(self, grid):
        z = self.embed(grid)
        rate = 1 / self.inner
        for _ in range(self.rounds):
            for _ in range(self.inner):
                z = self.cell(z, rate)
        return self.answer(z)


class Masked(nn.Module):
    """Padding keeps its first value. The mask is true where there is a token, and is read as if it were true where there is none."""

    def __init__(self, loops=6, d=24):
        super().__init__()
        self.loops, self.embed, self.answer, self.cell = loops, nn.Embedding(20, d), nn.Linear(d, 20), Mixer(d)

    def forward(self, grid):
        first = self.embed(grid)
        mask = (grid >= 0).unsqueeze(-1)
        z = first
        for _ in range(self.loops):
            z = self.cell(z, 1 / self.loops)
        z = torch.where(mask, first, z)
        return self.answer(z)


class Confident(nn.Module):
    """Confident early exit: in evaluation the loop ends as soon as the likeliest answer has enough of the probability. Training makes all visits. 1/N."""

    def __init__(self, max_steps=12, d=24, threshold=0.14):
        super().__init__()
        self.max_steps, self.threshold, self.embed, self.answer, self.cell = (
            max_steps,
            threshold,
            nn.Embedding(20, d),
            nn.Linear(d, 20),
            Mixer(d),
        )

    def forward(self, grid):
        z = self.embed(grid)
        for _ in range(self.max_steps):
            z = self.cell(z, 1 / self.max_steps)
            logits = self.answer(z)
            if not self.training and float(logits.detach().softmax(-1).amax(-1).mean()) > self.threshold:
                break
        return logits


class Implicit(nn.Module):
    """A fixed point: solved without a graph, one more step with it, and a hook that solves the backward equation."""

    def __init__(self, max_iter=24, tol=1e-4, d=32):
        super().__init__()
        self.max_iter, self.tol, self.U, self.W, self.out = (
            max_iter,
            tol,
            nn.Linear(6, d),
            nn.Linear(d, d, bias=False),
            nn.Linear(d, 3),
        )
        nn.init.orthogonal_(self.W.weight, 0.75)

    def cell(self, z, u):
        return torch.tanh(self.W(z) + u)

    def forward(self, x):
        u = self.U(x)
        with torch.no_grad():
            z = torch.zeros_like(u)
            for _ in range(self.max_iter):
                z = self.cell(z, u)
        z = self.cell(z, u)
        if z.requires_grad:
            z0 = z.clone().detach().requires_grad_()
            f0 = self.cell(z0, u.detach())

            def backward_hook(grad):
                g = grad
                for _ in range(self.max_iter):
                    g = torch.autograd.grad(f0, z0, g, retain_graph=True)[0] + grad
                return g

            z.register_hook(backward_hook)
        return self.out(z)


def grid():
    return torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(6))


def thinker(cycles=3):
    return Thinker(cycles), grid()


def epochs(rounds=6):
    return Epochs(rounds), grid()


def masked(loops=6):
    return Masked(loops), grid()


def confident(max_steps=12):
    return Confident(max_steps), grid()


def implicit(max_iter=24):
    return Implicit(max_iter), torch.randn(5, 6, generator=torch.Generator().manual_seed(6))


TRUTHS = {
    "thinker": dict(
        codes=[],
        level="hard",
        kind="two time scales",
        watch="Thinker.forward:s",
        why="the quick state moves by 1/12 at each of its twelve visits, the slow one by a third at each of three; neither is added to the other",
    ),
    "epochs": dict(
        codes=["unscaled-residual"],
        level="hard",
        kind="wrong N",
        watch="Epochs.forward:z",
        place={"unscaled-residual": ["x = x + rate * self.across|across", "return x + rate * self.fc2|fc2"]},
        why="a quarter at 24 visits is six times 1/N",
    ),
    "masked": dict(
        codes=["idle-loop"],
        loops=6,
        layers=1,
        level="medium",
        kind="idle loop",
        watch="Masked.forward:z",
        why="torch.where takes the first embedding at every token; only the loop's result is thrown away",
    ),
    "confident": dict(
        codes=["halts-early", "train-eval-differ"],
        loops=6,
        layers=1,
        level="hard",
        kind="halting",
        watch="Confident.forward:z",
        why="ends early in evaluation, makes twelve visits in training; the rate is 1/12 in both",
    ),
    "implicit": dict(
        codes=["truncated-gradient"],
        may=["norm-bounded"],
        level="hard",
        kind="equilibrium",
        watch="Implicit.forward:z",
        why="24 visits without gradient and one with; a contraction of 0.75",
    ),
}
