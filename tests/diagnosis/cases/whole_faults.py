"""Faults of the loop within its model, and models that look like them: a loop whose result is not read, or that starts again at every visit, a
number of loops that nothing reads. Every branch has 1/N: nothing else is to be said.
"""

from types import SimpleNamespace

import torch
from torch import nn

TRUTHS = {
    # idle-loop: the result is thrown away; all but shut by a constant
    "thrown": {"codes": "idle-loop", "law": "bounded", "loops": 6, "kind": "idle loop", "mended": "used"},
    "shut": {"codes": "idle-loop", "law": "bounded", "loops": 6, "kind": "idle loop", "mended": "used"},
    "used": {"codes": "", "law": "bounded", "loops": 6, "kind": "idle loop"},
    "zero_head": {"codes": "", "law": "bounded", "loops": 6, "kind": "idle loop", "hard": "look-alike"},
    "small_eps": {"codes": "", "law": "bounded", "loops": 24, "kind": "idle loop", "hard": "look-alike"},
    "last_only": {"codes": "", "law": "bounded", "loops": 6, "kind": "idle loop", "hard": "look-alike"},
    # restarts: each visit reads the embedding again
    "restarts": {"codes": "restarts", "law": None, "loops": None, "kind": "restart", "mended": "used"},
    "averaged": {"codes": "restarts", "law": None, "loops": None, "kind": "restart", "mended": "used"},
    "same_gate": {"codes": "", "law": "bounded", "loops": 6, "kind": "restart", "hard": "look-alike"},
    "memory_read": {"codes": "", "law": "bounded", "loops": 6, "kind": "restart", "hard": "look-alike"},
    "twins": {"codes": "", "law": "bounded", "loops": 6, "kind": "restart", "hard": "look-alike"},
    # knob-without-effect: the config asks for 12 and the forward makes 6
    "ignored": {"codes": "knob-without-effect", "law": "bounded", "loops": 6, "kind": "knob", "mended": "used"},
    "ignored_argument": {
        "codes": "knob-without-effect",
        "law": "bounded",
        "loops": 6,
        "kind": "knob",
        "mended": "used",
    },
    "trainer_config": {"codes": "", "law": "bounded", "loops": 6, "kind": "knob", "hard": "look-alike"},
    "other_iterations": {"codes": "", "law": "bounded", "loops": 6, "kind": "knob", "hard": "look-alike"},
    "capped": {"codes": "", "or": "halts-early", "law": "bounded", "loops": 4, "kind": "knob", "hard": "look-alike"},
    "one_less": {"codes": "", "law": "bounded", "loops": 5, "kind": "halting", "hard": "look-alike"},
}


class Branch(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(d), nn.Linear(d, 3 * d), nn.Linear(3 * d, d)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(self.norm(x))))


class Base(nn.Module):
    """x <- x + branch(x) / N, six times; the models below change one thing each."""

    def __init__(self, d=32, **config):
        super().__init__()
        self.embed, self.branch, self.norm, self.head = (
            nn.Embedding(64, d),
            Branch(d),
            nn.LayerNorm(d),
            nn.Linear(d, 64),
        )
        self.config = SimpleNamespace(**config)

    def loop(self, x, n=6):
        for _ in range(n):
            x = x + self.branch(x) / n
        return x

    def forward(self, ids):
        return self.head(self.norm(self.loop(self.embed(ids))))


class Thrown(Base):
    def forward(self, ids):
        x = self.embed(ids)
        y = self.loop(x)
        self.size = float(y.detach().norm())
        return self.head(self.norm(x))


class Shut(Base):
    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(x + 1e-6 * (self.loop(x) - x)))


class Last(Base):
    def forward(self, ids):
        return self.head(self.norm(self.loop(self.embed(ids)))[:, -1])


class Restarts(Base):
    """`x` is never written: each visit reads the embedding."""

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(6):
            y = x + self.branch(x) / 6
        return self.head(self.norm(y))


class Averaged(Base):
    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(torch.stack([x + self.branch(x) / 6 for _ in range(6)]).mean(0)))


class SameGate(Base):
    """One matrix reads the state and the embedding at every visit: its second result repeats, the loop goes on."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 32)

    def forward(self, ids):
        x = e = self.embed(ids)
        for _ in range(6):
            x = x + torch.sigmoid(self.gate(self.norm(x)) + self.gate(e)) * self.branch(x) / 6
        return self.head(self.norm(x))


class MemoryRead(Base):
    """Cross-attention whose keys and values are computed from the same memory at every visit."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(32, 32)

    def forward(self, ids):
        x, held = self.embed(ids), self.norm(self.embed(ids.flip(-1)))
        for _ in range(6):
            k, v = self.kv(held).chunk(2, -1)
            x = x + self.o(torch.softmax(self.q(self.norm(x)) @ k.mT / 32**0.5, -1) @ v) / 6
            x = x + self.branch(x) / 6
        return self.head(self.norm(x))


class Twins(Base):
    """Two passes of one loop over two inputs, compared at the end."""

    def forward(self, ids):
        a, b = self.loop(self.embed(ids)), self.loop(self.embed(ids.flip(-1)))
        return self.head(self.norm(a - b))


class Argument(Base):
    def forward(self, ids, n_loops=6):
        return super().forward(ids)


class Iterations(Base):
    """A router balanced by 20 Sinkhorn iterations: a number of iterations, of something else."""

    def __init__(self):
        super().__init__()
        self.router, self.n_iters = nn.Linear(32, 4), 20

    def forward(self, ids):
        x = self.loop(self.embed(ids))
        w = self.router(self.norm(x)).softmax(-1)
        for _ in range(self.n_iters):
            w = w / w.sum(1, keepdim=True)
            w = w / w.sum(-1, keepdim=True)
        return self.head(self.norm(x)) * w.mean(-1, keepdim=True)


class Capped(Base):
    def forward(self, ids):
        return self.head(self.norm(self.loop(self.embed(ids), min(ids.shape[1] // 4, self.config.max_iters))))


class OneLess(Base):
    """The first of `n_loops` passes is a layer of its own."""

    def __init__(self, n_loops=6):
        super().__init__()
        self.first, self.n_loops = Branch(), n_loops

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.first(x) / self.n_loops
        for _ in range(1, self.n_loops):
            x = x + self.branch(x) / self.n_loops
        return self.head(self.norm(x))


class SmallEps(Base):
    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(24):
            x = x + self.branch(x) / 24
        return self.head(x)


def _seeded(build):
    torch.manual_seed(0)
    return build()


def thrown():
    return _seeded(Thrown)


def shut():
    return _seeded(Shut)


def used():
    return _seeded(Base)


def zero_head():
    model = _seeded(Base)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


def small_eps():
    return _seeded(SmallEps)


def last_only():
    return _seeded(Last)


def restarts():
    return _seeded(Restarts)


def averaged():
    return _seeded(Averaged)


def same_gate():
    return _seeded(SameGate)


def memory_read():
    return _seeded(MemoryRead)


def twins():
    return _seeded(Twins)


def ignored():
    return _seeded(lambda: Base(n_loops=12))


def ignored_argument():
    return _seeded(Argument)


def trainer_config():
    return _seeded(lambda: Base(max_iters=600000, eval_iters=200, log_iters=10))


def other_iterations():
    return _seeded(Iterations)


def capped():
    return _seeded(lambda: Capped(max_iters=8)), torch.arange(32).view(2, 16)


def one_less():
    return _seeded(OneLess)
