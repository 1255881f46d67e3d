"""Walk k = 1 to 4 steps along the edges of a graph with eight nodes, one edge out of each: k look-ups in a row."""

from __future__ import annotations

import numpy as np
from answers import answer_loss, generator, house, pack
from torch import Tensor, nn

NODES, STEPS = 8, 4


def make_model(loops, layers, width, strength, base_layers, seed) -> nn.Module:
    """The house Transformer."""
    return house(loops, layers, width, strength, base_layers, seed)


def make_batch(split: str, step: int, seed: int, batch_size: int) -> Tensor:
    """[B, 11]: where each node leads, k (as symbols 9 to 12), the start, the end."""
    rng = generator(split, step, seed)
    edges = rng.permuted(np.tile(np.arange(NODES), (batch_size, 1)), axis=1)
    steps, start = rng.integers(1, STEPS + 1, (batch_size, 1)), rng.integers(0, NODES, (batch_size, 1))
    at = start
    for done in range(STEPS):
        at = np.where(done < steps, np.take_along_axis(edges, at, axis=1), at)
    return pack(edges, NODES + steps, start, at)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Of the end."""
    return answer_loss(model, batch, 1)
