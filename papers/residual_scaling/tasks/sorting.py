"""Sort eight symbols."""

from __future__ import annotations

import numpy as np
from answers import SEPARATOR, answer_loss, column, generator, house, pack
from torch import Tensor, nn


def make_model(loops, layers, width, strength, base_layers, seed) -> nn.Module:
    """The house Transformer."""
    return house(loops, layers, width, strength, base_layers, seed)


def make_batch(split: str, step: int, seed: int, batch_size: int) -> Tensor:
    """[B, 17]: eight symbols of 0..14, a separator, the same in order."""
    symbols = generator(split, step, seed).integers(0, SEPARATOR, (batch_size, 8))
    return pack(symbols, column(SEPARATOR, symbols), np.sort(symbols, axis=1))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Of the eight sorted symbols."""
    return answer_loss(model, batch, 8)
