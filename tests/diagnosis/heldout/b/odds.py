"""Modes, halting, gates, knobs, copies and numbers."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(d, h=64):
    return nn.Sequential(nn.Linear(d, h), nn.SiLU(), nn.Linear(h, d))


class Core(nn.Module):
    def __init__(self, loops=6, d=32):
        super().__init__()
        self.enter, self.norm, self.f, self.leave, self.loops = (
            nn.Linear(5, d),
            nn.LayerNorm(d),
            mlp(d),
            nn.Linear(d, 3),
            loops,
        )

    def step(self, x, n):
        return x + self.f(self.norm(x)) / self.loops

    def forward(self, x):
        x = self.enter(x)
        for n in range(self.loops):
            x = self.step(x, n)
        return self.leave(x)


class BatchNormed(nn.Module):
    """A batch norm shared by all visits, at the end of a branch whose weights are small: it is idle in evaluation."""

    def __init__(self, loops=6, c=8):
        super().__init__()
        self.enter, self.conv, self.bn = nn.Conv2d(1, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.head, self.loops = nn.Linear(c, 4), loops
        nn.init.normal_(self.conv.weight, std=0.002)

    def forward(self, x):
        x = self.enter(x)
        for _ in range(self.loops):
            x = x + self.bn(self.conv(torch.relu(x))) / self.loops
        return self.head(x.mean((2, 3)))


class Stops(Core):
    """In evaluation the loop ends when the state stands still; in training it makes all its visits."""

    def __init__(self, loops=20):
        super().__init__(loops)
        self.W = nn.Linear(32, 32)
        nn.init.orthogonal_(self.W.weight, gain=0.5)

    def forward(self, x):
        u = h = self.enter(x)
        for _ in range(self.loops):
            new = torch.tanh(self.W(h) + u)
            if not self.training and torch.allclose(new, h, atol=1e-3):
                break
            h = new
        return self.leave(h)


class LayerDrop(Core):
    """Visits are left out at random in training, the others made larger to match."""

    def step(self, x, n):
        f = self.f(self.norm(x)) / self.loops
        if self.training:
            f = f * (torch.rand(()) < 0.9) / 0.9
        return x + f


class Closed(Core):
    """A learned gate lets the loop's result in; it is shut."""

    def __init__(self, loops=6):
        super().__init__(loops)
        self.gate = nn.Parameter(torch.tensor(-16.0))

    def forward(self, x):
        x0 = h = self.enter(x)
        for n in range(self.loops):
            h = self.step(h, n)
        return self.leave(x0 + torch.sigmoid(self.gate) * (h - x0))


class Overwritten(Core):
    """The loop writes to another name than it reads."""

    def forward(self, x):
        x = self.enter(x)
        for n in range(self.loops):
            y = self.step(x, n)
        return self.leave(y)


class Deaf(Core):
    """The number of steps is an argument that nothing reads."""

    def forward(self, x, num_steps=6):
        return super().forward(x)


class Forgetless(Core):
    """A learned decay sigmoid(lambda), with lambda far out."""

    def __init__(self, loops=6):
        super().__init__(loops)
        self.lam = nn.Parameter(torch.full((32,), 19.0))

    def step(self, x, n):
        return torch.sigmoid(self.lam) * x + self.f(self.norm(x)) / self.loops


class Rounded(Core):
    """The sum is made in float32 and kept in bfloat16."""

    def step(self, x, n):
        return (x.float() + 0.03 * self.f(self.norm(x.float())) / self.loops).bfloat16()

    def forward(self, x):
        x = self.enter(x).bfloat16()
        for n in range(self.loops):
            x = self.step(x, n)
        return self.leave(x.float())


class Bursts(Core):
    """Each visit multiplies by a thousand: 1e42 is beyond float32."""

    def step(self, x, n):
        return 1000 * x + self.f(self.norm(x)) / self.loops


class Clones(nn.Module):
    """Raw matrices, cloned for every visit."""

    def __init__(self, visits=5, d=24):
        super().__init__()
        self.enter, self.leave = nn.Linear(5, d), nn.Linear(d, 3)
        w_in, w_out = torch.randn(2 * d, d) * d**-0.5, torch.randn(d, 2 * d) * d**-0.5 / 2
        self.w_in = nn.ParameterList(nn.Parameter(w_in.clone()) for _ in range(visits))
        self.w_out = nn.ParameterList(nn.Parameter(w_out.clone()) for _ in range(visits))

    def forward(self, x):
        x = self.enter(x)
        for a, b in zip(self.w_in, self.w_out):
            x = x + F.linear(torch.relu(F.linear(F.rms_norm(x, x.shape[-1:]), a)), b) / len(self.w_in)
        return self.leave(x)


class Cut(Core):
    """The stream is detached at every visit, the last branch alone learns."""

    def step(self, x, n):
        return super().step(x.detach(), n)


class Depths(nn.Module):
    """Tokens leave the loop at a depth of their own choice; the mask holds them where they are."""

    def __init__(self, loops=5, d=32):
        super().__init__()
        self.tok, self.norm, self.f, self.leave, self.loops = (
            nn.Embedding(30, d),
            nn.LayerNorm(d),
            mlp(d),
            nn.Linear(d, 30),
            loops,
        )
        self.want = nn.Linear(d, loops)

    def forward(self, ids):
        x = self.tok(ids)
        depth = self.want(x).argmax(-1, keepdim=True)
        depth = torch.maximum(depth, torch.where(torch.arange(ids.shape[1]) % 3 == 0, self.loops, 1)[None, :, None])
        for n in range(self.loops):
            x = torch.where(depth > n, x + self.f(self.norm(x)) / self.loops, x)
        return self.leave(x)


def rows():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(6))


def batch_normed(loops=6):
    return BatchNormed(loops), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(6))


def stops(loops=20):
    return Stops(loops), rows()


def layer_drop(loops=10):
    return LayerDrop(loops), rows()


def closed(loops=6):
    return Closed(loops), rows()


def overwritten(loops=5):
    return Overwritten(loops), rows()


def deaf():
    return Deaf(6), rows()


def forgetless(loops=6):
    return Forgetless(loops), rows()


def rounded(loops=12):
    return Rounded(loops), rows()


def bursts(loops=14):
    return Bursts(loops), rows()


def clones():
    return Clones(), rows()


def cut(loops=6):
    return Cut(loops), rows()


def depths(loops=5):
    return Depths(loops)


TRUTHS = {
    "batch_normed": dict(
        codes=["train-eval-differ"],
        loops=6,
        layers=1,
        level="medium",
        kind="mode",
        watch="BatchNormed.forward:x",
        place={"train-eval-differ": ["bn"]},
        why="idle in evaluation, full updates in training",
    ),
    "stops": dict(
        codes=["halts-early", "norm-bounded", "train-eval-differ"],
        law="bounded",
        level="hard",
        kind="halting",
        watch="Stops.forward:h",
        why="a contraction that halts in one mode only",
    ),
    "layer_drop": dict(
        codes=[],
        other=["train-eval-differ"],
        loops=10,
        layers=1,
        level="medium",
        kind="mode",
        watch="Core.forward:x",
        why="the same size on average; a note at most",
    ),
    "closed": dict(
        codes=["idle-loop"],
        loops=6,
        layers=1,
        level="medium",
        kind="idle loop",
        watch="Closed.forward:h",
        why="a gate of 1e-7",
    ),
    "overwritten": dict(
        codes=["restarts"],
        loops=5,
        layers=1,
        level="easy",
        kind="restart",
        watch="Overwritten.forward:y",
        why="x is never handed on",
    ),
    "deaf": dict(
        codes=["knob-without-effect"],
        loops=6,
        layers=1,
        level="medium",
        kind="knob",
        watch="Core.forward:x",
        place={"knob-without-effect": ["num_steps"]},
        why="self.loops is read, num_steps is not",
    ),
    "forgetless": dict(
        codes=["marginal-decay"],
        loops=6,
        layers=1,
        level="easy",
        kind="gate",
        watch="Core.forward:x",
        place={"marginal-decay": ["lam|return torch.sigmoid(self.lam) * x"]},
        why="1 - 6e-9 is 1.0",
    ),
    "rounded": dict(
        codes=["bf16-absorbed"],
        loops=12,
        layers=1,
        level="hard",
        kind="precision",
        watch="Rounded.forward:x",
        why="additions of 0.1 % are rounded away when the sum is stored",
    ),
    "bursts": dict(
        codes=["nonfinite"], level="medium", kind="finite", watch="Core.forward:x", why="infinite after the 13th visit"
    ),
    "clones": dict(
        codes=["untied"],
        other=["untied", "not-looped"],
        level="medium",
        kind="tying",
        watch="Clones.forward:x",
        place={"untied": ["w_in", "w_out"]},
        why="equal by value, not by memory",
    ),
    "cut": dict(
        codes=["truncated-gradient"],
        loops=6,
        layers=1,
        level="easy",
        kind="truncation",
        watch="Core.forward:x",
        why="1 of 6 visits",
    ),
    "depths": dict(
        codes=[],
        loops=5,
        layers=1,
        level="hard",
        kind="routing",
        watch="Depths.forward:x",
        why="1/N under a mask; all visits are made",
    ),
}
