"""Second states, values that leave torch, writes through views, precision, gates and mixtures: each told by experiment."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import Function

from loopscale.diagnosis import diagnose

D, N = 16, 8


class Base(nn.Module):
    """Numbers in, numbers out; `run` is the loop."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.norm = nn.Linear(6, D), nn.Linear(D, 2), nn.LayerNorm(D)
        self.f = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))
        for layer in (self.f[0], self.f[2]):
            nn.init.normal_(layer.weight, std=1.5 * layer.in_features**-0.5)
        self.loops = N
        self.make()

    def make(self):
        pass

    def forward(self, x):
        return self.leave(self.run(self.enter(x)))

    def branch(self, h):
        return self.f(self.norm(h))


def said(model, shape=(5, 6), **more):
    torch.manual_seed(0)
    return diagnose(model(), torch.randn(*shape), **{"products": 0, **more})


class Places(Base):
    """A wide state that a cell bounds, and a narrow one, detached at every visit, that takes `rate` of each correction."""

    rate = 1.0

    def make(self):
        self.cell, self.head = nn.GRUCell(D + 3, D), nn.Linear(D, 3)
        nn.init.normal_(self.head.weight)

    def forward(self, x):
        state, place = torch.tanh(self.enter(x)), x[:, :3]
        for _ in range(self.loops):
            before = place.detach()
            state = self.cell(torch.cat([state, torch.tanh(before)], 1), state)
            place = before + self.rate * self.head(state)
        return place


class Slow(Places):
    rate = 1 / N


class Adds(Function):
    @staticmethod
    def forward(ctx, a, b):
        return torch.from_numpy(a.detach().numpy() + b.detach().numpy())

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


adds = Adds.apply


class Hidden(Base):
    def run(self, h):
        for _ in range(self.loops):
            h = adds(h, self.branch(h))
        return h


class HiddenN(Base):
    def run(self, h):
        for _ in range(self.loops):
            h = Adds.apply(h, self.branch(h) / self.loops)
        return h


class Numpy(Base):
    def run(self, h):
        with torch.no_grad():
            for _ in range(self.loops):
                h = torch.from_numpy(h.numpy() + self.branch(h).numpy())
        return h


class View(Base):
    def run(self, h):
        h = h.clone()
        for _ in range(self.loops):
            h[:, :8].add_(self.branch(h)[:, :8])
        return h


class Data(Base):
    def run(self, h):
        h = h.detach().clone()
        for _ in range(self.loops):
            h.data.add_(self.branch(h).detach())
        return h


class Kahan(Base):
    def run(self, h):
        h = h.bfloat16()
        lost = torch.zeros_like(h)
        for _ in range(2 * self.loops):
            add = (0.02 * self.branch(h.float()) / N).bfloat16() + lost
            new = h + add
            lost, h = add - (new - h), new
        return h.float() + lost.float()


class Rounded(Kahan):
    def run(self, h):
        h = h.bfloat16()
        for _ in range(2 * self.loops):
            h = h + (0.02 * self.branch(h.float()) / N).bfloat16()
        return h.float()


class Learned(Base):
    def make(self):
        self.a, self.b = nn.Parameter(torch.tensor(1 / N)), nn.Parameter(torch.full((D,), 1 / N))

    def run(self, h):
        for _ in range(self.loops):
            h = h + self.a * (self.b * self.branch(h))
        return h


class LearnedOnce(Learned):
    def run(self, h):
        for _ in range(self.loops):
            h = h + self.a * self.branch(h)
        return h


class Second(Base):
    """A step of an integrator of second order: 1/N^2 is right, since the speed is carried on."""

    def run(self, h):
        old = h
        for _ in range(self.loops):
            h, old = 2 * h - old + self.branch(h) / self.loops**2, h
        return h


class Streams(Base):
    keeps = 0.4

    def run(self, h):
        z = h[:, None].expand(-1, 3, -1)
        mixture = 0.3 + self.keeps * torch.eye(3)
        for _ in range(self.loops):
            z = torch.einsum("ij,bjd->bid", mixture, z) + self.branch(z.mean(1))[:, None] / self.loops
        return z.mean(1)


class Convex(Streams):
    keeps = 0.1


class Preserves(Base):
    """A carry of sqrt(1 - 1/N) forgets a third in all: less than updates by 1/sqrt(N) that point the same way add."""

    def make(self):
        self.loops = 32

    def run(self, h):
        keep = 1 - 1 / self.loops
        for _ in range(self.loops):
            h = keep**0.5 * h + (1 - keep) ** 0.5 * self.branch(h)
        return h


class Gate(Base):
    def make(self):
        self.alpha = nn.Parameter(torch.zeros(()))

    def run(self, h):
        for _ in range(self.loops):
            h = h + self.alpha * self.branch(h)
        return h


class GateN(Gate):
    def run(self, h):
        for _ in range(self.loops):
            h = h + self.alpha / self.loops * self.branch(h)
        return h


class Noise(Base):
    def run(self, h):
        for _ in range(self.loops):
            h = h + self.branch(h) / self.loops + 0.1 * (2 / self.loops) ** 0.5 * torch.randn(h.shape)
        return h


class Drawn(Base):
    def run(self, h):
        count = int(torch.randint(4, 12, ()))
        for _ in range(count):
            h = h + self.branch(h) / count
        return h


class Longer(Base):
    def run(self, h):
        for _ in range(self.loops):
            h = h + self.branch(h) / self.loops
            h = torch.cat([h, h.mean(1, keepdim=True)], 1)
        return h


class Shorter(Base):
    def run(self, h):
        for _ in range(self.loops // 2):
            h = (h + self.branch(h))[:, :-1]
        return h


class Slices(Base):
    def make(self):
        del self.f, self.loops
        self.w = nn.Parameter(torch.randn(N, D, D) / math.sqrt(D))

    def picked(self):
        return list(self.w)

    def run(self, h):
        for w in self.picked():
            h = h + torch.tanh(self.norm(h) @ w) / N
        return h


class Selected(Slices):
    def picked(self):
        return [self.w.index_select(0, torch.tensor([i]))[0] for i in range(N)]


class Alike(Slices):
    def make(self):
        super().make()
        with torch.no_grad():
            self.w.copy_(self.w[:1].expand(N, D, D).clone())


@pytest.mark.parametrize(
    ("model", "codes"),
    [
        (Places, {"unscaled-residual"}),
        (Hidden, {"unscaled-residual"}),
        (HiddenN, set()),
        (Numpy, {"growth-unexplained"}),
        (View, {"unscaled-residual"}),
        (Data, {"unscaled-residual"}),
        (Kahan, set()),
        (Rounded, {"bf16-absorbed"}),
        (Learned, {"double-depth-scale"}),
        (LearnedOnce, set()),
        (Streams, {"nested-skip"}),
        (Convex, set()),
        (Preserves, {"sqrt-scaled"}),
        (Gate, {"dead-branch", "unscaled-residual"}),
        (GateN, {"dead-branch"}),
        (Drawn, set()),
        (Slices, {"not-looped"}),
        (Selected, {"not-looped"}),
        (Alike, {"untied"}),
    ],
)
def test_each_kind_and_its_likeness(model, codes):
    assert said(model).codes == codes


def test_a_second_state_by_one_over_n_is_none_that_piles_up():
    assert not said(Slow).at_least("warning")


def test_a_second_state_that_grows_is_named_at_its_line():
    (found,) = said(Places).findings
    assert "test_diagnose_carried.py" in found.evidence


def test_a_step_of_second_order_is_no_scale_twice():
    assert "double-depth-scale" not in said(Second).codes


def test_what_is_drawn_in_the_forward_is_no_step():
    found = said(Noise, products=8)
    assert found.details["one_step"]["slope_first"] < 0.35, found.text()


@pytest.mark.parametrize(("model", "codes"), [(Longer, set()), (Shorter, {"unscaled-residual"})])
def test_a_sequence_that_grows_or_shrinks_is_measured(model, codes):
    assert said(model, (2, 6, 6)).codes == codes


class Masked(Base):
    def run(self, h):
        for _ in range(self.loops):
            scores = (h @ h.mT).masked_fill(torch.ones(1, h.shape[1], dtype=bool), float("-inf"))
            h = h + scores.softmax(-1) @ self.branch(h) / self.loops  # first
        return h


def test_the_first_value_that_is_not_finite_is_named_by_its_line():
    (found,) = said(Masked, (2, 3, 6)).findings
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# first" in text)
    assert found.code == "nonfinite" and f"test_diagnose_carried.py:{line}" in found.evidence
    assert "softmax" in found.evidence and "visit 1" in found.evidence
