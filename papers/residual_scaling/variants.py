"""The house Transformer changed as other projects do it: learned gates on the branches, damped starts, injected input.

Factories for `loopscale.train.fit`: they take the config's numbers by name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import loopscale as ls


class Gated(nn.Module):
    """gate * branch(x, ...); `gates` [V, 1 or D] has one row, or one for each of N visits, taken in turn."""

    def __init__(self, branch: nn.Module, gates: Tensor) -> None:
        super().__init__()
        self.branch, self.visit = branch, 0
        self.gates = nn.ParameterList(nn.Parameter(row.clone()) for row in gates)  # vectors: the role of gains

    def forward(self, *inputs: Any) -> Tensor:
        """[B, T, D] -> the same."""
        gate = self.gates[self.visit]
        self.visit = (self.visit + 1) % len(self.gates)
        out: Tensor = gate * self.branch(*inputs)
        return out


def house(loops: int, layers: int, width: int, rule: str, strength: float, base_layers: int | None, seed: int) -> Any:
    """The house Transformer over bytes."""
    values = {"head_dim": 16, "loops": loops, "layers": layers, "width": width, "base_layers": base_layers}
    return ls.LoopedTransformer(ls.ModelConfig(rule=rule, strength=strength, **values), seed=seed)


def _gated(model: Any, gates: Tensor) -> nn.Module:
    for block in model.core:
        block.attention, block.mlp = Gated(block.attention, gates), Gated(block.mlp, gates)
    return model


def learned_scalars(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """The rule's eps times a learned scalar on every branch, at first 1."""
    return _gated(house(loops, layers, width, rule, strength, base_layers, seed), torch.ones(1, 1))


def rezero(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """A learned scalar on every branch, at first 0 (ReZero, SkipInit)."""
    return _gated(house(loops, layers, width, rule, strength, base_layers, seed), torch.zeros(1, 1))


def layerscale(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """A learned diagonal on every branch, at first 0.1 (LayerScale)."""
    return _gated(house(loops, layers, width, rule, strength, base_layers, seed), torch.full((1, width), 0.1))


def visit_gates(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """A learned scalar for every branch and visit, at first 1/N."""
    return _gated(house(loops, layers, width, rule, strength, base_layers, seed), torch.full((loops, 1), 1 / loops))


class Times(nn.Module):
    """factor * w in the place of w, which starts at its value: under Adam it learns `factor` times as fast."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.factor * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What gives that weight."""
        return weight / self.factor


def outer_rate(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """Embedding and readout learn 4 times as fast as the rest."""
    model = house(loops, layers, width, rule, strength, base_layers, seed)
    for table in (model.embedding, model.readout):
        parametrize.register_parametrization(table, "weight", Times(4.0))
    return model


def damped(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """GPT-2's start on top: output projections by 1/sqrt(2 N L)."""
    model = house(loops, layers, width, rule, strength, base_layers, seed)
    with torch.no_grad():
        for block in model.core:
            for last in (block.attention.out, block.mlp.down):
                last.weight.div_(math.sqrt(2 * loops * layers))
    return model


class Injected(nn.Module):
    """The entry added before every visit: as it is, or times 1/N."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled

    def source(self, entry: Tensor) -> Tensor:
        """The stream as it enters the loop."""
        return entry

    def forward(self, x: Tensor, source: Tensor, step: float) -> Tensor:
        """[B, T, D] -> the same; `step` is 1/N."""
        return x + (step if self.scaled else 1.0) * source


def injected_unscaled(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """The input added at every visit as it is."""
    model = house(loops, layers, width, rule, strength, base_layers, seed)
    model.core.injection = Injected(scaled=False)
    return model


def injected_scaled(loops, layers, width, rule, strength, base_layers, seed) -> nn.Module:
    """The input added at every visit, times 1/N."""
    model = house(loops, layers, width, rule, strength, base_layers, seed)
    model.core.injection = Injected(scaled=True)
    return model
