"""Functions over trees of arrays, as they come over from JAX: scans, explicit parameters, initialisers by name; a loop whose list is indexed wrongly."""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn

tree_map = torch.utils._pytree.tree_map


class Hyper(NamedTuple):
    width: int = 32
    heads: int = 4
    steps: int = 8
    vocab: int = 64


def scan(f, carry, xs):
    ys = []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


def fori_loop(lower, upper, body, val):
    for i in range(lower, upper):
        val = body(i, val)
    return val


def variance_scaling(scale, generator):
    """Fan-in, normal."""
    return lambda *shape: torch.randn(*shape, generator=generator) * (scale / shape[0]) ** 0.5


def init_params(key, hyper, out_scale=1.0):
    generator = torch.Generator().manual_seed(key)
    dense, out = variance_scaling(1.0, generator), variance_scaling(out_scale, generator)
    d = hyper.width
    return {
        "attn": {"wq": dense(d, d), "wk": dense(d, d), "wv": dense(d, d), "wo": out(d, d)},
        "mlp": {"w1": dense(d, 4 * d), "b1": torch.zeros(4 * d), "w2": out(4 * d, d)},
        "embed": {"table": torch.randn(hyper.vocab, d, generator=generator)},
    }


def layer_norm(x):
    x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)


def attention(p, x, heads):
    B, T, D = x.shape
    q, k, v = ((x @ p[name]).reshape(B, T, heads, D // heads) for name in ("wq", "wk", "wv"))
    logits = torch.einsum("bthd,bshd->bhts", q, k) / (D // heads) ** 0.5
    logits = torch.where(torch.tril(torch.ones(T, T, dtype=torch.bool)), logits, -1e30)
    return torch.einsum("bhts,bshd->bthd", torch.softmax(logits, -1), v).reshape(B, T, D) @ p["wo"]


def mlp(p, x):
    return torch.nn.functional.gelu(x @ p["w1"] + p["b1"]) @ p["w2"]


def apply_scan(params, tokens, hyper):
    """The scan's step closes over the parameters; the rate is 1 / steps."""
    rate = 1.0 / hyper.steps

    def step(h, _):
        h = h + rate * attention(params["attn"], layer_norm(h), hyper.heads)
        h = h + rate * mlp(params["mlp"], layer_norm(h))
        return h, h.mean()

    h, _means = scan(step, params["embed"]["table"][tokens], torch.arange(hyper.steps))
    return layer_norm(h) @ params["embed"]["table"].mT


def apply_fori(params, tokens, hyper):
    """The rate stands in the loop's body; the initialisation had it before."""

    def body(i, h):
        h = h + attention(params["attn"], layer_norm(h), hyper.heads) / hyper.steps
        return h + mlp(params["mlp"], layer_norm(h)) / hyper.steps

    h = fori_loop(0, hyper.steps, body, params["embed"]["table"][tokens])
    return layer_norm(h) @ params["embed"]["table"].mT


def apply_list(params, tokens, hyper):
    """Every state is kept in a list for a plot; the block reads the first of them in place of the last."""
    states = [params["embed"]["table"][tokens]]
    for _ in range(hyper.steps):
        h = states[0]
        h = h + attention(params["attn"], layer_norm(h), hyper.heads) / hyper.steps
        h = h + mlp(params["mlp"], layer_norm(h)) / hyper.steps
        states.append(h)
    return layer_norm(states[-1]) @ params["embed"]["table"].mT


class Pure(nn.Module):
    """A module around a pure function, for those who want `.parameters()`."""

    def __init__(self, fn, params, hyper):
        super().__init__()
        self.fn, self.hyper = partial(fn, hyper=hyper), hyper
        self.groups = nn.ModuleDict(
            {name: nn.ParameterDict({k: nn.Parameter(v) for k, v in group.items()}) for name, group in params.items()}
        )

    def forward(self, tokens):
        return self.fn({name: dict(group.items()) for name, group in self.groups.items()}, tokens)


def tokens(hyper):
    return torch.randint(0, hyper.vocab, (2, 12), generator=torch.Generator().manual_seed(2))


def scanned(steps=8):
    hyper = Hyper(steps=steps)
    return Pure(apply_scan, init_params(0, hyper), hyper), tokens(hyper)


def twice_small(steps=8):
    hyper = Hyper(steps=steps)
    return Pure(apply_fori, init_params(0, hyper, out_scale=1 / (2 * steps)), hyper), tokens(hyper)


def first_of_list(steps=8):
    hyper = Hyper(steps=steps)
    return Pure(apply_list, init_params(0, hyper), hyper), tokens(hyper)


TRUTHS = {
    "scanned": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="code style",
        watch="apply_scan.<locals>.step:h",
        why="1/N in the step of a scan, parameters from a closure",
    ),
    "twice_small": dict(
        codes=["double-depth-scale"],
        loops=8,
        layers=1,
        level="medium",
        kind="initialisation",
        watch="apply_fori.<locals>.body:h",
        why="1/sqrt(2 N) in both output matrices, and 1/N",
    ),
    "first_of_list": dict(
        codes=["restarts"],
        level="medium",
        kind="idle loop",
        watch="apply_list:h",
        place={"restarts": ["h = states[0]|h = h + attention|h = h + mlp|attn|mlp"]},
        why="states[0] where states[-1] was meant: eight times the same first visit",
    ),
}
