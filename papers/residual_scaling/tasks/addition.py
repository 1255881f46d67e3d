"""Add two numbers of four digits, the most significant digit of the sum first: carries have to be looked ahead for."""

from __future__ import annotations

from answers import SEPARATOR, answer_loss, column, digits, generator, house, pack
from torch import Tensor, nn


def make_model(loops, layers, width, strength, base_layers, seed) -> nn.Module:
    """The house Transformer."""
    return house(loops, layers, width, strength, base_layers, seed)


def make_batch(split: str, step: int, seed: int, batch_size: int) -> Tensor:
    """[B, 15]: a, +, b, =, sum."""
    a, b = generator(split, step, seed).integers(0, 10_000, (2, batch_size))
    plus, equals = column(10, a), column(SEPARATOR, a)
    return pack(digits(a, 4), plus, digits(b, 4), equals, digits(a + b, 5))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Of the five digits of the sum."""
    return answer_loss(model, batch, 5)
