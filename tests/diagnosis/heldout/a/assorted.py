"""Precision, initialisation, norms, bookkeeping, and code in other styles."""

import math

import torch
from torch import nn

import loopscale as ls


class Toy(nn.Module):
    def __init__(self, loops=8, d=32, wide=2):
        super().__init__()
        self.emb, self.norm, self.head, self.loops = nn.Embedding(64, d), nn.LayerNorm(d), nn.Linear(d, 64), loops
        self.f = nn.Sequential(nn.Linear(d, wide * d), nn.GELU(), nn.Linear(wide * d, d))

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(self.loops):
            x = self.visit(x)
        return self.head(x)

    def visit(self, x):
        return x + self.f(self.norm(x)) / self.loops


class DeepNorm(Toy):
    """Post-LN with a weighted skip."""

    def visit(self, x):
        return self.norm(x * (2 * self.loops) ** 0.25 + self.f(x))


class Sandwich(Toy):
    """A norm before and after the branch, then eps: an update of fixed size."""

    def __init__(self, loops=8, d=32):
        super().__init__(loops, d)
        self.after = nn.RMSNorm(d, elementwise_affine=False)

    def visit(self, x):
        return x + 0.5 / self.loops * self.after(self.f(self.norm(x)))


class Half(Toy):
    """All in bfloat16, small steps."""

    def visit(self, x):
        return x + 0.06 * self.f(self.norm(x)) / self.loops


class Mixed(Toy):
    """The stream in float32, the branch in bfloat16."""

    def __init__(self, loops=16):
        super().__init__(loops)
        self.f.bfloat16()

    def visit(self, x):
        return x + self.f(self.norm(x).bfloat16()).float() / self.loops


class Shrunk(Toy):
    """GPT-2's 1/sqrt(2 depth) on the output projection, and eps."""

    def __init__(self, loops=12):
        super().__init__(loops)
        for m in self.f:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=32**-0.5)
        nn.init.normal_(self.f[2].weight, std=32**-0.5 / math.sqrt(2 * loops))


class ReZero(Toy):
    """One gate for all visits, at 0 when training starts."""

    def __init__(self, loops=8):
        super().__init__(loops)
        self.alpha = nn.Parameter(torch.zeros(()))

    def visit(self, x):
        return x + self.alpha * self.f(self.norm(x))


class Distinct(nn.Module):
    """Six layers, each with weights of its own."""

    def __init__(self, d=32):
        super().__init__()
        self.emb, self.head, self.loops = nn.Embedding(64, d), nn.Linear(d, 64), 6
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU(), nn.Linear(d, d)) for _ in range(6)
        )

    def forward(self, ids):
        x = self.emb(ids)
        for i in range(self.loops):
            x = x + self.layers[i](x) / 6**0.5
        return self.head(x)


class Twice(nn.Module):
    """A Loop of 3 inside a for of 4."""

    def __init__(self, d=32):
        super().__init__()
        branch = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.emb, self.core, self.head = (
            nn.Embedding(64, d),
            ls.Loop(ls.ScaledResidual(branch, nn.LayerNorm(d)), loops=3),
            nn.Linear(d, 64),
        )

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(4):
            x = self.core(x)
        return self.head(x)


class WithLoss(Toy):
    """The forward gives loss and logits in a dict."""

    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids)
        labels = input_ids if labels is None else labels
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits, "hidden": None}


class Einsum(nn.Module):
    """Raw parameters and functions; the input is added at every visit as well."""

    def __init__(self, n=7, d=32):
        super().__init__()
        self.p = nn.ParameterDict(
            {
                "table": torch.randn(64, d),
                "in": torch.randn(d, 2 * d) * d**-0.5,
                "out": torch.randn(2 * d, d) * (2 * d) ** -0.5,
                "read": torch.randn(d, 64) * d**-0.5,
            }
        )
        self.n = n

    def forward(self, ids):
        p = self.p
        first = p["table"][ids]
        h = first
        for _ in range(self.n):
            y = nn.functional.rms_norm(h, h.shape[-1:])
            update = torch.einsum("btm,md->btd", torch.relu(torch.einsum("btd,dm->btm", y, p["in"])), p["out"])
            h = h + update
            h = h + first
        return torch.einsum("btd,dv->btv", h, p["read"])


def deepnorm(loops=6):
    return DeepNorm(loops)


def sandwich(loops=8):
    return Sandwich(loops)


def half(loops=24):
    return Half(loops).bfloat16()


def mixed(loops=16):
    return Mixed(loops)


def not_a_number():
    model = Toy()
    with torch.no_grad():
        model.f[2].weight[3, 4] = float("nan")
    return model


def shrunk(loops=12):
    return Shrunk(loops)


def rezero(loops=8):
    return ReZero(loops)


def distinct():
    return Distinct()


def twice():
    return Twice()


def with_loss(loops=8):
    return WithLoss(loops)


def einsum(n=7):
    return Einsum(n)


TRUTHS = {
    "deepnorm": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=6,
        layers=1,
        level="easy",
        kind="norm",
        watch="Toy.forward:x",
        why="post-norm",
    ),
    "sandwich": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="norm",
        watch="Toy.forward:x",
        why="the norm is of the branch, not of the stream; eps = 1/(2N)",
    ),
    "half": dict(
        codes=["bf16-absorbed"],
        loops=24,
        layers=1,
        level="medium",
        kind="precision",
        watch="Toy.forward:x",
        place={"bf16-absorbed": ["return x + 0.06 * self.f|f"]},
        why="additions of 0.1 % of the stream are below 2^-9 of it",
    ),
    "mixed": dict(
        codes=[],
        loops=16,
        layers=1,
        level="medium",
        kind="precision",
        watch="Toy.forward:x",
        why="the sum is in float32",
    ),
    "not_a_number": dict(
        codes=["nonfinite"],
        level="easy",
        kind="finite",
        watch="Toy.forward:x",
        place={"nonfinite": ["f.2"]},
        why="one weight is NaN; nothing else may follow",
    ),
    "shrunk": dict(
        codes=["double-depth-scale"],
        loops=12,
        layers=1,
        level="medium",
        kind="initialisation",
        watch="Toy.forward:x",
        place={"double-depth-scale": ["f.2|f"]},
        why="1/sqrt(24) and 1/12",
    ),
    "rezero": dict(
        codes=["dead-branch", "unscaled-residual"],
        loops=8,
        layers=1,
        level="hard",
        kind="gate",
        watch="Toy.forward:x",
        place={"unscaled-residual": ["return x + self.alpha * self.f|f"]},
        why="a gate at 0 hides the law, and one step of the gate moves N visits at once: nothing carries 1/N",
    ),
    "distinct": dict(
        codes=["not-looped"],
        loops=1,
        level="easy",
        kind="tying",
        watch="Distinct.forward:x",
        why="no weight acts twice",
    ),
    "twice": dict(
        codes=["miscounted-loops"],
        loops=12,
        layers=1,
        level="medium",
        kind="bookkeeping",
        watch="Twice.forward:x",
        place={"miscounted-loops": ["core"]},
        why="eps 1/3 at twelve visits",
    ),
    "with_loss": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="code style",
        watch="Toy.forward:x",
        why="1/N; logits and loss are of one pass",
    ),
    "einsum": dict(
        codes=["unscaled-injection", "unscaled-residual"],
        law="linear",
        loops=7,
        layers=1,
        level="hard",
        kind="two faults",
        watch="Einsum.forward:h",
        mend="edit",
        place={"unscaled-residual": ["h = h + update"], "unscaled-injection": ["h = h + first"]},
        why="updates and input both at full size",
    ),
}
