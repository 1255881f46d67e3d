"""Right and wrong loops in unusual code: recursion with a tuple of states, a buffer changed in place at every call, `torch.compile`, generators,
bf16 with and without a stream in fp32, deep supervision that detaches between visits, cosine learning of a copy per visit.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

TRUTHS = {
    "recursive": {"codes": "", "law": "bounded", "loops": 7, "layers": 1, "kind": "code style", "hard": "unusual code"},
    "recursive_bare": {
        "codes": "unscaled-residual",
        "law": "linear",
        "loops": 7,
        "layers": 1,
        "kind": "code style",
        "hard": "unusual code",
    },
    "memory": {"codes": "", "law": "bounded", "loops": 6, "layers": 1, "kind": "code style", "hard": "unusual code"},
    "compiled": {"codes": "", "law": "bounded", "loops": 4, "layers": 1, "kind": "code style", "hard": "unusual code"},
    "generator": {
        "codes": "sqrt-scaled",
        "law": None,
        "loops": 9,
        "layers": 1,
        "kind": "code style",
        "hard": "unusual code",
    },
    "bf16": {
        "codes": "bf16-absorbed",
        "law": "bounded",
        "loops": 128,
        "layers": 1,
        "kind": "precision",
        "mended": "bf16_kept",
    },
    "bf16_kept": {"codes": "", "law": "bounded", "loops": 128, "layers": 1, "kind": "precision", "hard": "look-alike"},
    "supervised": {"codes": "truncated-gradient", "law": "bounded", "loops": 5, "layers": 1, "kind": "truncation"},
    "copied": {"codes": "untied", "law": None, "loops": 1, "kind": "tying"},
    "nested_plus": {
        "codes": "nested-skip unscaled-injection",
        "or": "nested-skip",
        "law": "exponential",
        "loops": 6,
        "kind": "nested",
        "hard": "two faults",
    },
}


class Branch(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        return self.b(torch.tanh(self.a(self.norm(x))))


class Recursive(nn.Module):
    def __init__(self, scale, n_steps=7, d=32):
        super().__init__()
        self.embed, self.branch, self.out, self.scale, self.n_steps = (
            nn.Embedding(64, d),
            Branch(d),
            nn.Linear(d, 64),
            scale,
            n_steps,
        )

    def step(self, carry, left):
        x, log = carry
        if left == 0:
            return x, log
        x = x + self.scale * self.branch(x)
        return self.step((x, [*log, x.detach().mean()]), left - 1)

    def forward(self, ids):
        x, log = self.step((self.embed(ids), []), self.n_steps)
        return self.out(x), torch.stack(log)


class Memory(nn.Module):
    """Counts its calls and keeps a running mean of what it last thought, which it reads at the next call."""

    def __init__(self, loops=6, d=32):
        super().__init__()
        self.embed, self.branch, self.out, self.loops = nn.Embedding(64, d), Branch(d), nn.Linear(d, 64), loops
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, ids):
        x = self.embed(ids) + self.mean
        for _ in range(self.loops):
            x = x + self.branch(x) / self.loops
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
        self.calls += 1
        return self.out(x)


class Compiled(nn.Module):
    def __init__(self, num_loops=4, d=32):
        super().__init__()
        self.embed, self.out, self.num_loops = nn.Embedding(64, d), nn.Linear(d, 64), num_loops
        self.branch = torch.compile(Branch(d), backend="eager")

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.num_loops):
            x = x + self.branch(x) / self.num_loops
        return self.out(x)


class Generator(nn.Module):
    def __init__(self, visits=9, d=32):
        super().__init__()
        self.embed, self.branch, self.out, self.visits = nn.Embedding(64, d), Branch(d), nn.Linear(d, 64), visits

    def states(self, x):
        for _ in range(self.visits):
            x = torch.addcmul(x, self.branch(x), torch.tensor(self.visits**-0.5))
            yield x

    def forward(self, ids):
        *_, last = self.states(self.embed(ids))
        return self.out(last)


class Precise(nn.Module):
    def __init__(self, keep, loops=128, d=32):
        super().__init__()
        self.embed, self.branch, self.out, self.loops, self.keep = (
            nn.Embedding(64, d),
            Branch(d),
            nn.Linear(d, 64),
            loops,
            keep,
        )
        self.bfloat16()

    def forward(self, ids):
        x = self.embed(ids)
        x = x.float() if self.keep else x
        for _ in range(self.loops):
            x = x + (self.branch(x.bfloat16()) / self.loops).to(x.dtype)
        return self.out(x.bfloat16())


class Supervised(nn.Module):
    """Each visit is taught by itself: no gradient passes between visits."""

    def __init__(self, segments=5, d=32):
        super().__init__()
        self.embed, self.branch, self.out, self.segments = nn.Embedding(64, d), Branch(d), nn.Linear(d, 64), segments

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.segments):
            x = x.detach()
            x = x + self.branch(x) / self.segments
        return self.out(x)


class Copied(nn.Module):
    def __init__(self, loops=5, d=32):
        super().__init__()
        self.embed, shared, self.out = nn.Embedding(64, d), Branch(d), nn.Linear(d, 64)
        self.visits = nn.ModuleList(copy.deepcopy(shared) for _ in range(loops))

    def forward(self, ids):
        x = self.embed(ids)
        for branch in self.visits:
            x = x + branch(x) / len(self.visits)
        return self.out(x)


class NestedPlus(nn.Module):
    """The block has its skip, the loop another, and the embedding is added too."""

    def __init__(self, loops=6, d=32):
        super().__init__()
        self.embed, self.branch, self.out, self.loops = nn.Embedding(64, d), Branch(d), nn.Linear(d, 64), loops

    def block(self, x):
        return x + self.branch(x) / self.loops

    def forward(self, ids):
        x = e = self.embed(ids)
        for _ in range(self.loops):
            x = x + self.block(x) + e
        return self.out(F.layer_norm(x, x.shape[-1:]))


def recursive():
    torch.manual_seed(0)
    return Recursive(1 / 7)


def recursive_bare():
    torch.manual_seed(0)
    return Recursive(1.0)


def memory():
    torch.manual_seed(0)
    return Memory()


def compiled():
    torch.manual_seed(0)
    return Compiled()


def generator():
    torch.manual_seed(0)
    return Generator()


def bf16():
    torch.manual_seed(0)
    return Precise(False)


def bf16_kept():
    torch.manual_seed(0)
    return Precise(True)


def supervised():
    torch.manual_seed(0)
    return Supervised()


def copied():
    torch.manual_seed(0)
    return Copied()


def nested_plus():
    torch.manual_seed(0)
    return NestedPlus()
