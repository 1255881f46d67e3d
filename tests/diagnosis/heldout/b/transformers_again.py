"""Transformers in other clothes: wrappers, fused additions, layer-wise order, encoder and decoder, attached ones."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import loopscale as ls


class Residual(nn.Module):
    def __init__(self, inner, d, scale=1.0):
        super().__init__()
        self.inner, self.norm, self.scale = inner, nn.LayerNorm(d), scale

    def forward(self, x):
        return x + self.scale * self.inner(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.w = nn.ModuleDict({k: nn.Linear(d, d, bias=False) for k in "qkvo"})
        self.heads = heads

    def forward(self, x, memory=None):
        m = x if memory is None else memory
        q, k, v = (self.w[n](s).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n, s in zip("qkv", (x, m, m)))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=memory is None)
        return self.w["o"](out.transpose(1, 2).flatten(2))


def feed(d):
    return nn.Sequential(nn.Linear(d, 3 * d), nn.SiLU(), nn.Linear(3 * d, d))


class Tower(nn.Module):
    """The same object many times in a Sequential."""

    def __init__(self, times, d=32, scale=1.0):
        super().__init__()
        block = nn.Sequential(Residual(SelfAttention(d), d, scale), Residual(feed(d), d, scale))
        self.embed, self.body, self.out = nn.Embedding(90, d), nn.Sequential(*[block] * times), nn.Linear(d, 90)

    def forward(self, ids):
        return self.out(self.body(self.embed(ids)))


class LayerWise(nn.Module):
    """Each layer three times in a row before the next."""

    def __init__(self, repeats=3, d=32):
        super().__init__()
        eps = 1 / (repeats * 2**0.5)
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(SelfAttention(d), d, eps), Residual(feed(d), d, eps)]) for _ in range(2)
        )
        self.embed, self.out, self.repeats = nn.Embedding(90, d), nn.Linear(d, 90), repeats

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            for _ in range(self.repeats):
                for branch in layer:
                    x = branch(x)
        return self.out(x)


class Parallel(nn.Module):
    """Attention and MLP beside each other, added in one line."""

    def __init__(self, loops=9, d=32):
        super().__init__()
        self.embed, self.ln, self.out = nn.Embedding(90, d), nn.LayerNorm(d), nn.Linear(d, 90)
        self.att, self.ffn, self.loops = SelfAttention(d), feed(d), loops

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            y = self.ln(x)
            x = x + self.att(y) + self.ffn(y)
        return self.out(x)


class Fused(nn.Module):
    """The addition is inside baddbmm."""

    def __init__(self, loops=8, d=32):
        super().__init__()
        self.embed, self.ln, self.out, self.loops = nn.Embedding(90, d), nn.LayerNorm(d), nn.Linear(d, 90), loops
        self.up, self.down = nn.Linear(d, 64), nn.Parameter(torch.randn(64, d) / 8)

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            hidden = torch.relu(self.up(self.ln(x)))
            x = torch.baddbmm(x, hidden, self.down.expand(len(x), -1, -1))
        return self.out(x)


class Stacked(nn.Module):
    """The addition is a sum over a stack."""

    def __init__(self, loops=7, d=32):
        super().__init__()
        self.embed, self.ln, self.f, self.out, self.loops = (
            nn.Embedding(90, d),
            nn.LayerNorm(d),
            feed(d),
            nn.Linear(d, 90),
            loops,
        )

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            x = torch.stack([x, self.f(self.ln(x)) / self.loops]).sum(0)
        return self.out(x)


class Universal(nn.Module):
    """Pre-norm; place and time are added to the state before every step, at full size, as are the branches."""

    def __init__(self, steps=6, d=32):
        super().__init__()
        self.embed, self.out, self.steps = nn.Embedding(90, d), nn.Linear(d, 90), steps
        self.n1, self.n2, self.att, self.ffn = nn.LayerNorm(d), nn.LayerNorm(d), SelfAttention(d), feed(d)
        for p in [*self.att.parameters(), *self.ffn.parameters()]:
            if p.dim() == 2:
                nn.init.xavier_uniform_(p, gain=1.5)

    def signal(self, at, d):
        angle = at.float()[..., None] / 100 ** (torch.arange(0, d, 2) / d)
        return torch.cat([angle.sin(), angle.cos()], -1)

    def forward(self, ids):
        x = self.embed(ids)
        t, d = x.shape[1:]
        for step in range(1, self.steps + 1):
            x = x + self.signal(torch.arange(t), d) + self.signal(torch.tensor(step), d)
            x = x + self.att(self.n1(x))
            x = x + self.ffn(self.n2(x))
        return self.out(x)


class Translator(nn.Module):
    """An encoder, and a decoder loop which reads it by cross-attention; a dict of two sentences."""

    def __init__(self, loops=5, d=32):
        super().__init__()
        self.src, self.tgt, self.out, self.loops = nn.Embedding(40, d), nn.Embedding(40, d), nn.Linear(d, 40), loops
        self.encoder = nn.TransformerEncoderLayer(d, 4, 64, batch_first=True, norm_first=True)
        self.n = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.own, self.cross, self.ffn = SelfAttention(d), SelfAttention(d), feed(d)

    def forward(self, source, target):
        memory, y = self.encoder(self.src(source)), self.tgt(target)
        for _ in range(self.loops):
            y = y + self.own(self.n[0](y)) / self.loops
            y = y + self.cross(self.n[1](y), memory) / self.loops
            y = y + self.ffn(self.n[2](y)) / self.loops
        return self.out(y)


class Generated(nn.Module):
    """A shared matrix and, for every visit, a rank-one change written by a small net from the visit's code."""

    def __init__(self, visits=6, d=32):
        super().__init__()
        self.embed, self.ln, self.out, self.visits = nn.Embedding(90, d), nn.LayerNorm(d), nn.Linear(d, 90), visits
        self.core, self.leave = nn.Parameter(torch.randn(d, d) * d**-0.5), nn.Linear(d, d)
        self.code, self.writer = nn.Parameter(torch.randn(visits, 8)), nn.Linear(8, 2 * d)

    def forward(self, ids):
        x = self.embed(ids)
        for code in self.code:
            left, right = self.writer(code).chunk(2)
            w = self.core + 0.1 * torch.outer(left, right)
            x = x + self.leave(torch.tanh(F.linear(self.ln(x), w))) / self.visits
        return self.out(x)


class Normed(nn.Module):
    """Weight-normed matrices: parametrizations give a new tensor at each access."""

    def __init__(self, loops=6, d=32):
        super().__init__()
        self.embed, self.ln, self.out, self.loops = nn.Embedding(90, d), nn.LayerNorm(d), nn.Linear(d, 90), loops
        self.up, self.down = weight_norm(nn.Linear(d, 64)), weight_norm(nn.Linear(64, d))

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            x = x + self.down(F.gelu(self.up(self.ln(x)))) / self.loops
        return self.out(x)


class Plain(nn.Module):
    def __init__(self, loops=8, d=32):
        super().__init__()
        self.embed, self.ln, self.f, self.out, self.loops = (
            nn.Embedding(90, d),
            nn.LayerNorm(d),
            feed(d),
            nn.Linear(d, 90),
            loops,
        )

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            x = x + self.f(self.ln(x))
        return self.out(x)


class GPT2Init(Plain):
    """No eps; the output projection starts at 1/sqrt(depth) of the others, which are large."""

    def __init__(self, loops=12, d=32):
        super().__init__(loops, d)
        for m in self.f:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=1.5 / m.in_features**0.5)
                nn.init.zeros_(m.bias)
        with torch.no_grad():
            self.f[2].weight.div_(loops**0.5)


class TwiceScaled(Plain):
    """1/N in the block and 1/N around it."""

    def block(self, x):
        return self.f(self.ln(x)) / self.loops

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.loops):
            x = x + self.block(x) * (1 / self.loops)
        return self.out(x)


def tower(times=6):
    return Tower(times, scale=1 / times)


def layer_wise(repeats=3):
    return LayerWise(repeats)


def parallel(loops=9):
    return Parallel(loops)


def fused(loops=8):
    return Fused(loops)


def stacked(loops=7):
    return Stacked(loops)


def universal(steps=6):
    return Universal(steps)


def translator(loops=5):
    words = torch.randint(0, 40, (2, 2, 11), generator=torch.Generator().manual_seed(8))
    return Translator(loops), {"source": words[0], "target": words[1]}


def generated():
    return Generated()


def normed(loops=6):
    return Normed(loops)


def attached(loops=8):
    model = Plain(loops)
    ls.attach(model, loops=loops, layers=1, branches=["f"])
    return model


def attached_then_changed():
    model = Plain(4)
    ls.attach(model, loops=4, layers=1, branches=["f"])
    model.loops = 12
    return model


def gpt2_init(loops=12):
    return GPT2Init(loops)


def twice_scaled(loops=10):
    return TwiceScaled(loops)


TRUTHS = {
    "tower": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="code style",
        watch="Residual.forward:x",
        why="one block six times, 1/N",
    ),
    "layer_wise": dict(
        codes=[],
        loops=3,
        layers=2,
        level="medium",
        kind="order",
        watch="LayerWise.forward:x",
        why="1/(N sqrt(L)), layer by layer",
    ),
    "parallel": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=9,
        layers=1,
        level="medium",
        kind="language",
        watch="Parallel.forward:x",
        place={"unscaled-residual": ["x = x + self.att(y) + self.ffn(y)|att", "x = x + self.att(y) + self.ffn(y)|ffn"]},
        mend="attach",
        why="two branches at eps = 1",
    ),
    "fused": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="hard",
        kind="code style",
        watch="Fused.forward:x",
        place={"unscaled-residual": ["x = torch.baddbmm"]},
        why="eps = 1 inside a fused product",
    ),
    "stacked": dict(
        codes=[],
        loops=7,
        layers=1,
        level="hard",
        kind="code style",
        watch="Stacked.forward:x",
        why="a stack summed, the update at 1/N",
    ),
    "universal": dict(
        codes=["unscaled-injection", "unscaled-residual"],
        law="linear",
        loops=6,
        layers=1,
        level="hard",
        kind="two faults",
        watch="Universal.forward:x",
        mend="edit",
        place={
            "unscaled-injection": ["x = x + self.signal"],
            "unscaled-residual": ["x = x + self.att(self.n1(x))|att", "x = x + self.ffn(self.n2(x))|ffn"],
        },
        why="signals and branches at full size",
    ),
    "translator": dict(
        codes=[], loops=5, level="medium", kind="reader", watch="Translator.forward:y", why="three branches at 1/N"
    ),
    "generated": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="adapter",
        watch="Generated.forward:x",
        why="private changes of a shared matrix, 1/N",
    ),
    "normed": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="norm",
        watch="Normed.forward:x",
        why="norms of weights bound no stream; 1/N",
    ),
    "attached": dict(
        codes=[],
        loops=8,
        layers=1,
        level="easy",
        kind="bookkeeping",
        watch="Plain.forward:x",
        why="attached at its own N",
    ),
    "attached_then_changed": dict(
        codes=["miscounted-loops"],
        loops=12,
        layers=1,
        level="medium",
        kind="bookkeeping",
        watch="Plain.forward:x",
        why="attached for 4 visits, makes 12",
    ),
    "gpt2_init": dict(
        codes=["sqrt-scaled"],
        loops=12,
        layers=1,
        level="hard",
        kind="initialisation",
        watch="Plain.forward:x",
        why="1/sqrt(N), in the weights",
    ),
    "twice_scaled": dict(
        codes=["double-depth-scale"],
        loops=10,
        layers=1,
        level="medium",
        kind="initialisation",
        watch="TwiceScaled.forward:x",
        place={
            "double-depth-scale": ["x = x + self.block(x) * (1 / self.loops)|return self.f(self.ln(x)) / self.loops|f"]
        },
        why="1/N times 1/N",
    ),
}
