"""Factors, precision, modes, gradients, halting, knobs and copies, in the code of many hands."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

import loopscale as ls


def net(d, h=64, gain=None):
    layers = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, d))
    if gain:
        for m in (layers[0], layers[2]):
            nn.init.normal_(m.weight, std=gain * m.in_features**-0.5)
            nn.init.zeros_(m.bias)
    return layers


class Regressor(nn.Module):
    """Rows of numbers in, one number out; `update` is what a visit does."""

    def __init__(self, T, d=32, gain=None):
        super().__init__()
        self.T, self.fc_in, self.fc_out = T, nn.Linear(9, d), nn.Linear(d, 1)
        self.ln, self.mlp = nn.LayerNorm(d), net(d, gain=gain)

    def update(self, h, t):
        raise NotImplementedError

    def forward(self, features):
        h = self.fc_in(features)
        for t in range(self.T):
            h = self.update(h, t)
        return self.fc_out(h).squeeze(-1)


class ReZeroN(Regressor):
    """alpha starts at 0 and is divided by N."""

    def __init__(self, T):
        super().__init__(T)
        self.alpha = nn.Parameter(torch.zeros(1))

    def update(self, h, t):
        return h + (self.alpha / self.T) * self.mlp(self.ln(h))


class LayerScaled(Regressor):
    """LayerScale of 1/N, and the 1/N that was there before."""

    def __init__(self, T):
        super().__init__(T, gain=1.0)
        self.ls = nn.Parameter(torch.ones(32) / T)

    def update(self, h, t):
        out = self.ls * self.mlp(self.ln(h))
        return h + out / self.T


class VariancePreserving(Regressor):
    """sqrt(1 - b) of the state and sqrt(b) of the update with b = 1/N keep the variance of independent updates; these are not."""

    def update(self, h, t):
        b = 1 / self.T
        return (1 - b) ** 0.5 * h + b**0.5 * self.mlp(self.ln(h))


class Compensated(Regressor):
    """A bfloat16 stream with Kahan's second number, which keeps what rounding took away."""

    def forward(self, features):
        h = self.fc_in(features).bfloat16()
        lost = torch.zeros_like(h)
        for t in range(self.T):
            add = (0.05 * self.mlp(self.ln(h.float())) / self.T).bfloat16() - lost
            new = h + add
            lost = (new - h) - add
            h = new
        return self.fc_out(h.float() - lost.float()).squeeze(-1)


class Stored(Regressor):
    """The stream in bfloat16, the update in float32, cast and added in place."""

    def forward(self, features):
        h = self.fc_in(features).to(torch.bfloat16)
        for t in range(self.T):
            delta = self.mlp(self.ln(h.float())) * (0.04 / self.T)
            h.add_(delta.to(h.dtype))
        return self.fc_out(h.float()).squeeze(-1)


class StreamDropout(Regressor):
    """Dropout on the stream itself: every visit of training multiplies what is left by 1/0.65."""

    def update(self, h, t):
        h = F.dropout(h, 0.35, self.training)
        return h + self.mlp(self.ln(h)) / self.T


class BranchDropout(Regressor):
    """Dropout in the branch, as everyone has it."""

    def update(self, h, t):
        return h + F.dropout(self.mlp(self.ln(h)), 0.1, self.training) / self.T


class Windows(Regressor):
    """Truncated backpropagation: the graph is cut at every fourth visit; no factor on the branch."""

    def update(self, h, t):
        if t % 4 == 0:
            h = h.detach()
        return h + self.mlp(self.ln(h))


class Routed(Regressor):
    """A router reads a detached copy of the stream; the stream itself is not detached."""

    def __init__(self, T):
        super().__init__(T)
        self.second, self.router = net(32), nn.Linear(32, 2)

    def update(self, h, t):
        y = self.ln(h)
        w = self.router(h.detach()).softmax(-1)
        return h + (w[..., :1] * self.mlp(y) + w[..., 1:] * self.second(y)) / self.T


class Rotating(Regressor):
    """A complex diagonal state (LRU) over depth: |lambda| = exp(-exp(nu)), angles theta."""

    def __init__(self, T, nu, d=32):
        super().__init__(T)
        self.nu, self.theta = nn.Parameter(torch.full((d // 2,), nu)), nn.Parameter(torch.rand(d // 2))

    def update(self, h, t):
        lam = torch.polar(torch.exp(-torch.exp(self.nu)), self.theta)
        z = torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous())
        u = torch.view_as_complex(self.mlp(self.ln(h)).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(lam * z + u / self.T).flatten(-2)


class Subtracted(Regressor):
    """Corrections, each taken away from the state."""

    def update(self, h, t):
        return torch.sub(h, self.mlp(self.ln(h)))


class ACT(nn.Module):
    """Adaptive computation time over a post-norm cell: it halts when the probabilities of a row come to 0.99."""

    def __init__(self, max_hops=12, d=32):
        super().__init__()
        self.emb, self.out, self.max_hops = nn.Embedding(30, d), nn.Linear(d, 30), max_hops
        self.mix, self.ff, self.n1, self.n2 = nn.Linear(d, d), net(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.halt = nn.Linear(d, 1)
        nn.init.constant_(self.halt.bias, -1.0)

    def cell(self, s):
        s = self.n1(s + self.mix(s.mean(1, keepdim=True)))
        return self.n2(s + self.ff(s))

    def forward(self, ids):
        state = self.emb(ids)
        total = remaining = state.new_ones(state.shape[:-1])
        mean = torch.zeros_like(state)
        hop = 0
        while hop < self.max_hops and bool((remaining > 0.01).any()):
            state = self.cell(state)
            p = torch.sigmoid(self.halt(state)).squeeze(-1)
            last = (remaining - p < 0.01) | torch.tensor(hop == self.max_hops - 1)
            spent = torch.where(last, remaining, torch.minimum(p, remaining))
            mean = mean + spent.unsqueeze(-1) * state
            remaining = remaining - spent
            hop += 1
        return self.out(mean / total.unsqueeze(-1))


class ExitGates(nn.Module):
    """Every visit gives logits and a chance to leave; the answer is the expectation over all visits (Ouro's stage one)."""

    def __init__(self, total_ut_steps=4, d=32):
        super().__init__()
        self.emb, self.head, self.gate = nn.Embedding(30, d), nn.Linear(d, 30), nn.Linear(d, 1)
        self.ln1, self.ln2, self.ff = nn.LayerNorm(d), nn.LayerNorm(d), net(d)
        self.attn, self.total_ut_steps = nn.MultiheadAttention(d, 2, batch_first=True), total_ut_steps

    def forward(self, ids):
        h, stay, expected = self.emb(ids), 1.0, 0.0
        for i in range(self.total_ut_steps):
            y = self.ln1(h)
            h = h + self.attn(y, y, y)[0] / self.total_ut_steps
            h = h + self.ff(self.ln2(h)) / self.total_ut_steps
            leave = torch.sigmoid(self.gate(h)) if i < self.total_ut_steps - 1 else torch.ones_like(h[..., :1])
            expected = expected + stay * leave * self.head(h)
            stay = stay * (1 - leave)
        return {"logits": expected, "last": self.head(h)}


class Thoughts(nn.Module):
    """Continuous thoughts: the normed last state is put behind the sequence as its next token, and all is read again."""

    def __init__(self, num_thoughts=5, d=32):
        super().__init__()
        self.emb, self.head, self.ln_f, self.num_thoughts = (
            nn.Embedding(30, d),
            nn.Linear(d, 30),
            nn.LayerNorm(d),
            num_thoughts,
        )
        self.layer = nn.TransformerEncoderLayer(d, 2, 64, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, ids):
        seq = self.emb(ids)
        for _ in range(self.num_thoughts):
            mask = nn.Transformer.generate_square_subsequent_mask(seq.shape[1])
            thought = self.ln_f(self.layer(seq, src_mask=mask)[:, -1:])
            seq = torch.cat([seq, thought], 1)
        return self.head(seq)


class Reduced(nn.Module):
    """A fold over the visits whose step takes the embedding, not what it was handed."""

    def __init__(self, folds=6, d=32):
        super().__init__()
        self.emb, self.head, self.norm, self.f, self.folds = (
            nn.Embedding(30, d),
            nn.Linear(d, 30),
            nn.LayerNorm(d),
            net(d),
            folds,
        )

    def forward(self, ids):
        e = self.emb(ids)
        step = lambda h, _: e + self.f(self.norm(e)) / self.folds  # noqa: E731
        return self.head(functools.reduce(step, range(self.folds), e))


class Hyperparameters(nn.Module):
    """A dict of numbers; the loop takes the wrong one, `layers` in place of `loops`."""

    def __init__(self, hp):
        super().__init__()
        d = hp["width"]
        self.hp, self.emb, self.head, self.norm, self.f = (
            hp,
            nn.Embedding(30, d),
            nn.Linear(d, 30),
            nn.LayerNorm(d),
            net(d),
        )

    def forward(self, ids):
        h = self.emb(ids)
        for _ in range(self.hp["layers"]):
            h = h + self.f(self.norm(h)) / self.hp["layers"]
        return self.head(h)


class Built(nn.Module):
    """The list of visits is made when the model is; the number is kept in `cfg` and read nowhere else, which is no fault."""

    def __init__(self, cfg, d=32):
        super().__init__()
        self.cfg, self.emb, self.head = cfg, nn.Embedding(30, d), nn.Linear(d, 30)
        block = nn.Sequential(nn.LayerNorm(d), net(d))
        self.tower = nn.ModuleList([block] * cfg["recurrence"])

    def forward(self, ids):
        h = self.emb(ids)
        for block in self.tower:
            h = h + block(h) / len(self.tower)
        return self.head(h)


class Refined(nn.Module):
    """A Loop of five for a draft, and the same Loop again over the draft."""

    def __init__(self, loops=5, d=32):
        super().__init__()
        self.emb, self.head = nn.Embedding(30, d), nn.Linear(d, 30)
        self.core = ls.Loop(ls.ScaledResidual(net(d), nn.LayerNorm(d)), loops=loops)

    def forward(self, ids):
        draft = self.core(self.emb(ids))
        return self.head(self.core(draft))


class Sliced(nn.Module):
    """One tensor holds the matrices of all visits, at first the same matrix again and again."""

    def __init__(self, n=5, d=32, alike=True):
        super().__init__()
        self.emb, self.head = nn.Embedding(30, d), nn.Linear(d, 30)
        up, down = (
            torch.randn(1 if alike else n, d, 2 * d) * d**-0.5,
            torch.randn(1 if alike else n, 2 * d, d) * (2 * d) ** -0.5,
        )
        self.up, self.down = (
            nn.Parameter(up.expand(n, d, 2 * d).clone()),
            nn.Parameter(down.expand(n, 2 * d, d).clone()),
        )

    def forward(self, ids):
        x = self.emb(ids)
        for i in range(len(self.up)):
            x = x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ self.up[i]) @ self.down[i] / len(self.up)
        return self.head(x)


class Fused(torch.autograd.Function):
    """Addition as a kernel of its own."""

    @staticmethod
    def forward(ctx, stream, update):
        return torch.from_numpy(stream.detach().numpy() + update.detach().numpy())

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class Opaque(Regressor):
    """The residual addition happens outside of torch."""

    def update(self, h, t):
        return Fused.apply(h, self.mlp(self.ln(h)))


class TwoSpeeds(nn.Module):
    """HRM without its norms: pre-norm blocks, a fast state inside a slow one, both added at full size; gradients through all."""

    def __init__(self, cycles=3, inner=3, d=32):
        super().__init__()
        self.emb, self.head, self.cycles, self.inner = nn.Embedding(12, d), nn.Linear(d, 12), cycles, inner
        self.low, self.high = (nn.Sequential(nn.LayerNorm(d), net(d, gain=1.4)) for _ in range(2))

    def forward(self, puzzle):
        x = self.emb(puzzle)
        carry = {"z_low": x, "z_high": x.flip(-1)}
        for _ in range(self.cycles):
            for _ in range(self.inner):
                z_low = carry["z_low"] + self.low(carry["z_low"] + carry["z_high"] + x)
                carry = {**carry, "z_low": z_low}
            carry["z_high"] = carry["z_high"] + self.high(carry["z_high"] + carry["z_low"])
        return self.head(carry["z_high"])


class DeltaRule(nn.Module):
    """A fast-weight matrix beside the stream: every visit corrects what the matrix recalls, and the stream takes what it recalls by 1/N."""

    def __init__(self, depth=6, d=24):
        super().__init__()
        self.emb, self.head, self.depth = nn.Embedding(30, d), nn.Linear(d, 30), depth
        self.ln, self.kqv, self.beta, self.o = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, 1), nn.Linear(d, d)
        self.S0 = nn.Parameter(torch.randn(d, d) * d**-0.5)

    def forward(self, ids):
        x = self.emb(ids)
        S = self.S0.expand(*x.shape[:2], -1, -1)
        for _ in range(self.depth):
            y = self.ln(x)
            k, q, v = self.kqv(y).chunk(3, -1)
            k, b = F.normalize(k, dim=-1), torch.sigmoid(self.beta(y)).unsqueeze(-1)
            S = S + b * (v - torch.einsum("btvk,btk->btv", S, k)).unsqueeze(-1) * k.unsqueeze(-2)
            x = x + self.o(torch.einsum("btvk,btk->btv", S, q)) / self.depth
        return self.head(x)


def features():
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(17))


def rezero_n(T=8):
    return ReZeroN(T), features()


def layer_scaled(T=10):
    return LayerScaled(T), features()


def variance_preserving(T=32):
    return VariancePreserving(T, gain=2.0), features()


def compensated(T=16):
    return Compensated(T), features()


def stored(T=16):
    return Stored(T), features()


def stream_dropout(T=9):
    return StreamDropout(T), features()


def branch_dropout(T=7):
    return BranchDropout(T), features()


def windows(T=10):
    return Windows(T, gain=1.5), features()


def routed(T=6):
    return Routed(T), features()


def rotating(T=6):
    return Rotating(T, -2.5), features()


def rotating_forever(T=6):
    return Rotating(T, -19.0), features()


def subtracted(T=11):
    return Subtracted(T, gain=1.4), features()


def act(max_hops=12):
    return ACT(max_hops)


def exit_gates(total_ut_steps=4):
    return ExitGates(total_ut_steps)


def thoughts(num_thoughts=5):
    return Thoughts(num_thoughts)


def reduced(folds=6):
    return Reduced(folds)


def hyperparameters(loops=12):
    return Hyperparameters({"loops": loops, "layers": 6, "width": 32})


def built(recurrence=5):
    return Built({"recurrence": recurrence})


def refined(loops=5):
    return Refined(loops)


def sliced():
    return Sliced()


def slices():
    return Sliced(alike=False)


def opaque(T=9):
    return Opaque(T, gain=1.4), features()


def two_speeds(cycles=3):
    return TwoSpeeds(cycles)


def delta_rule(depth=6):
    return DeltaRule(depth)


TRUTHS = {
    "rezero_n": dict(
        codes=["dead-branch"],
        loops=8,
        layers=1,
        level="medium",
        kind="gate",
        watch="Regressor.forward:h",
        why="alpha is 0 at first, and alpha / N later",
    ),
    "layer_scaled": dict(
        codes=["double-depth-scale"],
        loops=10,
        layers=1,
        level="medium",
        kind="initialisation",
        watch="Regressor.forward:h",
        place={"double-depth-scale": ["out = self.ls|return h + out / self.T|ls|mlp"]},
        why="1/N in the LayerScale and 1/N behind it",
    ),
    "variance_preserving": dict(
        codes=["sqrt-scaled"],
        loops=32,
        layers=1,
        level="hard",
        kind="gate",
        watch="Regressor.forward:h",
        place={"sqrt-scaled": ["return (1 - b) ** 0.5 * h|mlp"]},
        why="updates by 1/sqrt(N) that point the same way; the kept part falls to exp(-1/2) only",
    ),
    "compensated": dict(
        codes=[],
        loops=16,
        level="hard",
        kind="precision",
        watch="Compensated.forward:h",
        why="what bfloat16 rounds away is kept in a second number and added later",
    ),
    "stored": dict(
        codes=["bf16-absorbed"],
        loops=16,
        level="medium",
        kind="precision",
        watch="Stored.forward:h",
        place={"bf16-absorbed": ["h.add_(delta|mlp"]},
        why="additions of less than a thousandth of a bfloat16 stream",
    ),
    "stream_dropout": dict(
        codes=["train-eval-differ"],
        loops=9,
        layers=1,
        level="medium",
        kind="mode",
        watch="Regressor.forward:h",
        why="dropout of the stream is no map of size 1: in training the size grows by 1/sqrt(0.65) a visit",
    ),
    "branch_dropout": dict(
        codes=[],
        other=["train-eval-differ"],
        loops=7,
        layers=1,
        level="easy",
        kind="mode",
        watch="Regressor.forward:h",
        why="the same loop in both modes; 1/N",
    ),
    "windows": dict(
        codes=["truncated-gradient", "unscaled-residual"],
        law="linear",
        loops=10,
        layers=1,
        level="medium",
        kind="two faults",
        watch="Regressor.forward:h",
        place={"unscaled-residual": ["return h + self.mlp(self.ln(h))|mlp"]},
        why="cut before visits 1, 5 and 9, so 2 of 10 have a gradient; and eps = 1",
    ),
    "routed": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="routing",
        watch="Regressor.forward:h",
        why="the router reads a detached copy, the stream keeps its gradient; 1/N",
    ),
    "rotating": dict(
        codes=[],
        other=["norm-bounded"],
        loops=6,
        layers=1,
        level="hard",
        kind="gate",
        watch="Regressor.forward:h",
        why="a decay of 0.92 and 1/N",
    ),
    "rotating_forever": dict(
        codes=["marginal-decay"],
        loops=6,
        layers=1,
        level="hard",
        kind="gate",
        watch="Regressor.forward:h",
        place={"marginal-decay": ["nu|lam = torch.polar"]},
        why="exp(-exp(-19)) is 1.0 in single precision",
    ),
    "subtracted": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=11,
        layers=1,
        level="medium",
        kind="code style",
        watch="Regressor.forward:h",
        mend="attach",
        place={"unscaled-residual": ["return torch.sub(h|mlp"]},
        why="corrections of full size, taken away instead of added",
    ),
    "act": dict(
        codes=["halts-early", "norm-bounded"],
        law="bounded",
        loops=7,
        level="medium",
        kind="halting",
        watch="ACT.forward:state",
        why="post-norm; the probabilities come to 0.99 before the twelfth hop",
    ),
    "exit_gates": dict(
        codes=[],
        loops=4,
        layers=1,
        level="medium",
        kind="halting",
        watch="ExitGates.forward:h",
        why="all visits are made and weighed; 1/N",
    ),
    "thoughts": dict(
        codes=[],
        other=["norm-bounded"],
        level="hard",
        kind="growing sequence",
        watch="Thoughts.forward:thought",
        why="every thought is normed before it is read again",
    ),
    "reduced": dict(
        codes=["restarts"],
        loops=6,
        level="medium",
        kind="restart",
        watch="Reduced.forward.<locals>.<lambda>:h",
        why="the fold hands on h and the step reads e",
    ),
    "hyperparameters": dict(
        codes=["knob-without-effect"],
        loops=6,
        layers=1,
        level="hard",
        kind="knob",
        watch="Hyperparameters.forward:h",
        place={"knob-without-effect": ["loops"]},
        why="hp['loops'] is read by nothing, hp['layers'] is the number of visits",
    ),
    "built": dict(
        codes=[],
        loops=5,
        layers=1,
        level="hard",
        kind="knob",
        watch="Built.forward:h",
        why="the number was used when the list was made; the list is what is run",
    ),
    "refined": dict(
        codes=["miscounted-loops"],
        loops=10,
        layers=1,
        level="medium",
        kind="bookkeeping",
        watch="Refined.forward:draft",
        place={"miscounted-loops": ["core"]},
        why="eps 1/5 at ten visits",
    ),
    "sliced": dict(
        codes=["untied"],
        other=["untied", "not-looped"],
        level="hard",
        kind="tying",
        watch="Sliced.forward:x",
        place={"untied": ["up|x = x + F.gelu"]},
        why="slices of one parameter that are equal at first and learn apart",
    ),
    "slices": dict(
        codes=["not-looped"],
        loops=1,
        level="hard",
        kind="tying",
        watch="Sliced.forward:x",
        why="slices of one parameter that never were equal: distinct layers",
    ),
    "opaque": dict(
        codes=["unscaled-residual"],
        other=["growth-unexplained"],
        law="linear",
        loops=9,
        level="hard",
        kind="hidden",
        watch="Regressor.forward:h",
        why="eps = 1; the addition is made in numpy, so not to see it is as right, to pass over the growth is not",
    ),
    "two_speeds": dict(
        codes=["unscaled-residual"],
        law="linear",
        level="hard",
        kind="two time scales",
        watch="TwoSpeeds.forward:z_low",
        place={"unscaled-residual": ["z_low = carry|low", 'carry["z_high"] = |high']},
        why="both states take full updates at each of their visits; the puzzle enters the branch only",
    ),
    "delta_rule": dict(
        codes=[],
        other=["norm-bounded"],
        loops=6,
        level="hard",
        kind="memory",
        watch="DeltaRule.forward:S",
        why="the matrix is corrected towards what it should recall, never by more than that; 1/N for the stream",
    ),
}
