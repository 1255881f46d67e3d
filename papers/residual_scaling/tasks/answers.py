"""What the tasks share: the house Transformer over 16 symbols, and the loss over the answer alone, in nats per symbol."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import loopscale as ls

SYMBOLS, SEPARATOR = 16, 15
Tokens = NDArray[np.int64]


def house(loops: int, layers: int, width: int, strength: float, base_layers: int | None, seed: int) -> nn.Module:
    """The house Transformer by the rule `looped`."""
    size = {"width": width, "layers": layers, "base_layers": base_layers, "loops": loops, "head_dim": 16}
    return ls.LoopedTransformer(ls.ModelConfig(vocab_size=SYMBOLS, strength=strength, **size), seed=seed)


def generator(split: str, step: int, seed: int) -> np.random.Generator:
    """Of one batch; training and validation never share one."""
    return np.random.Generator(np.random.Philox(key=[seed + (0 if split == "train" else 2**40), step]))


def digits(numbers: Tokens, count: int) -> Tokens:
    """[B] -> [B, count], the most significant digit first."""
    return numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10


def column(symbol: int, like: Tokens) -> Tokens:
    """One symbol in every row, [B, 1]."""
    return np.full((len(like), 1), symbol)


def answer_loss(model: nn.Module, tokens_BT: Tensor, length: int) -> Tensor:
    """Cross-entropy of the last `length` symbols, each given all before it."""
    logits_BTV = model(tokens_BT[:, :-1])[:, -length:]
    return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, -length:].flatten())


def pack(*parts: Tokens) -> Tensor:
    """Columns side by side as one batch, [B, T]."""
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.int64))
