"""Random looped blocks: norm placement x branches x scale x injection x outer path x routing x truncation x way of sharing.

A model writes the size of its stream into `sizes` itself, so that what the diagnosis says of growth can be held against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, VOCAB = 16, 31
CHOICES: dict[str, tuple[Any, ...]] = {
    "loops": (2, 3, 4, 6, 8, 12),
    "layers": (1, 2),
    "placement": ("pre", "post", "sandwich", "none", "final"),
    "branch": ("mlp", "attention", "both", "parallel", "conv", "swiglu"),
    "scale": ("looped", "one", "sqrt", "gate", "layerscale"),
    "inject": ("none", "one", "scaled", "branch", "adapter", "position", "time"),
    "outer": ("plain", "nested", "highway", "streams", "momentum"),
    "route": ("all", "masked"),
    "truncate": ("none", "detach", "no_grad"),
    "share": ("module", "list", "parameters", "functional"),
}


@dataclass(frozen=True)
class Recipe:
    """One choice of each; the names are the keys of `CHOICES`."""

    loops: int = 4
    layers: int = 1
    placement: str = "pre"
    branch: str = "mlp"
    scale: str = "looped"
    inject: str = "none"
    outer: str = "plain"
    route: str = "all"
    truncate: str = "none"
    share: str = "module"

    @property
    def eps(self) -> float:
        """What each branch is multiplied by."""
        n, layers = self.loops, self.layers
        return {"looped": 1 / (n * math.sqrt(layers)), "sqrt": 1 / math.sqrt(n * layers)}.get(self.scale, 1.0)

    @property
    def right(self) -> bool:
        """By construction the rule: pre-norm branches at 1/(N sqrt(L)) and no other path into the stream."""
        plain = (self.placement, self.scale, self.outer) == ("pre", "looped", "plain")
        return plain and self.inject in ("none", "branch") and self.truncate == "none"

    @property
    def sums_to_one_visit(self) -> bool:
        """Whether all that the visits add is no more than one visit would add without a scale."""
        small = self.scale in ("looped", "gate", "layerscale")
        return small and self.inject not in ("one", "position", "time") and self.outer in ("plain", "highway")


class Branch(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        d, self.kind = WIDTH, kind
        self.up, self.down, self.gate = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, 2 * d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.conv = nn.Conv1d(d, d, 3, padding=1)
        used = {"mlp": "up down", "swiglu": "up down gate", "attention": "qkv out", "conv": "conv"}
        for name in {"up", "down", "gate", "qkv", "out", "conv"} - set(used.get(kind, "up down qkv out").split()):
            delattr(self, name)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "attention":
            return self.attend(x)
        if self.kind == "conv":
            return torch.tanh(self.conv(x.transpose(1, 2)).transpose(1, 2))
        y = self.down(F.silu(self.gate(x)) * self.up(x) if self.kind == "swiglu" else F.gelu(self.up(x)))
        return y + self.attend(x) if self.kind == "parallel" else y


class Layer(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        kinds = ("attention", "mlp") if recipe.branch == "both" else (recipe.branch,)
        self.branches = nn.ModuleList(Branch(kind) for kind in kinds)
        self.before, self.after = (nn.ModuleList(nn.LayerNorm(WIDTH) for _ in kinds) for _ in range(2))
        self.recipe = recipe
        start = {"gate": 1 / recipe.loops, "layerscale": 1e-3}.get(recipe.scale)
        self.gain = None if start is None else nn.Parameter(torch.full((WIDTH,), start))

    def update(self, i: int, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        recipe, branch = self.recipe, self.branches[i]
        y = x + e if recipe.inject == "branch" else x
        y = self.before[i](y) if recipe.placement in ("pre", "sandwich", "final") else y
        if recipe.route == "masked":
            chosen = y[..., 0] > 0
            made = torch.zeros_like(y)
            if bool(chosen.any()):
                made[chosen] = branch(y)[chosen]
        else:
            made = branch(y)
        made = self.after[i](made) if recipe.placement == "sandwich" else made
        return made * self.gain if self.gain is not None else made if recipe.eps == 1 else recipe.eps * made

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.branches)):
            x = x + self.update(i, x, e)
            x = self.after[i](x) if self.recipe.placement == "post" else x
        return x


class Composed(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, self.n_loops = recipe, recipe.loops
        self.embed, self.readout, self.norm = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB), nn.LayerNorm(WIDTH)
        layers = [Layer(recipe) for _ in range(recipe.layers)]
        if recipe.share == "parameters":
            layers += [_tied(layers[i % recipe.layers]) for i in range(recipe.layers * (recipe.loops - 1))]
        repeated = layers * recipe.loops if recipe.share == "list" else layers
        self.layers = nn.ModuleList(repeated)
        if recipe.inject == "adapter":
            self.adapter = nn.Linear(2 * WIDTH, WIDTH)
        if recipe.inject == "position":
            self.where = nn.Parameter(torch.randn(64, WIDTH))
        if recipe.inject == "time":
            self.register_buffer("when", torch.randn(WIDTH))
        if recipe.outer == "highway":
            self.carry = nn.Linear(WIDTH, WIDTH)
        self.sizes: list[float] = []

    def stack(self, x: torch.Tensor, e: torch.Tensor, visit: int) -> torch.Tensor:
        own = self.recipe.layers
        start = visit * own if self.recipe.share in ("list", "parameters") else 0
        for layer in list(self.layers)[start : start + own]:
            if self.recipe.share == "functional":
                x = torch.func.functional_call(layer, dict(layer.named_parameters()), (x, e))
            else:
                x = layer(x, e)
        return x

    def visit(self, x: torch.Tensor, e: torch.Tensor, visit: int) -> torch.Tensor:
        recipe = self.recipe
        if recipe.inject in ("one", "scaled"):
            x = x + (e if recipe.inject == "one" else e / recipe.loops)
        elif recipe.inject == "adapter":
            x = self.adapter(torch.cat([x, e], -1))
        elif recipe.inject == "position":
            x = x + self.where[: x.shape[1]]
        elif recipe.inject == "time":
            x = x + self.when
        y = self.stack(x, e, visit)
        if recipe.outer == "nested":
            y = x + y
        elif recipe.outer == "highway":
            y = torch.lerp(x, y, torch.sigmoid(self.carry(x)))
        return self.norm(y) if recipe.placement == "final" else y

    def note(self, x: torch.Tensor) -> None:
        """Write down the size of the stream as the model itself has it."""
        if not torch.is_grad_enabled() or x.requires_grad:
            self.sizes.append(float(x.detach().float().pow(2).mean().sqrt()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        recipe = self.recipe
        x = e = self.embed(tokens)
        second, speed = torch.zeros_like(x), torch.zeros_like(x)
        self.sizes = []
        self.note(x)
        loops = self.n_loops if recipe.share in ("module", "functional") else recipe.loops
        for n in range(loops):
            if recipe.truncate == "detach" and n == loops // 2:
                x = x.detach()
            early = recipe.truncate == "no_grad" and n < loops // 2
            with torch.set_grad_enabled(torch.is_grad_enabled() and not early):
                if recipe.outer == "streams":
                    y = self.visit((x + second) / 2, e, n) - (x + second) / 2
                    x, second = x + y, second + y
                elif recipe.outer == "momentum":
                    speed = 0.5 * speed + self.visit(x, e, n) - x
                    x = x + 0.5 * speed
                else:
                    x = self.visit(x, e, n)
            self.note(x)
        return self.readout(self.norm(x))


def _tied(source: Layer) -> Layer:
    twin = Layer(source.recipe)
    for path, parameter in source.named_parameters():
        stem, _, last = path.rpartition(".")
        setattr(twin.get_submodule(stem), last, parameter)
    return twin


def grown(recipe: Recipe) -> float:
    """The stream after all visits against before the first, by the model itself."""
    torch.manual_seed(0)
    model = Composed(recipe).eval()
    with torch.no_grad():
        model(torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0)))
    return model.sizes[-1] / model.sizes[0]
