"""The looped vision Transformer as an own model of a study: does the best learning rate stand still over loops?

loopscale transfer --model examples/blocks/vit_study.py:make_model --loops 1,2,4,8,16
"""

from functools import cache

import torch
import torch.nn.functional as F
from digits import digits
from looped_vit import LoopedViT
from torch import Tensor, nn

import loopscale as ls


def make_model(
    loops: int, layers: int, width: int, rule: str, strength: float, base_layers: int, seed: int
) -> nn.Module:
    """The initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    model = LoopedViT(loops, layers, width, rule)
    model.core = ls.Loop(model.core.stack, loops, rule, strength=strength, base_layers=base_layers)
    return model


def roles(model: nn.Module) -> dict[str, ls.Role]:
    """Found around the loop."""
    return ls.roles_of(model)


@cache
def _data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return digits()


def make_batch(split: str, step: int, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Train: drawn with replacement, by seed and step. Validation: the held-out images, in order."""
    images, labels, held_images, held_labels = _data()
    if split == "validation":
        picked = torch.arange(step * batch_size, (step + 1) * batch_size) % len(held_labels)
        return held_images[picked], held_labels[picked]
    random = torch.Generator().manual_seed(1_000_003 * seed + step)
    picked = torch.randint(len(labels), (batch_size,), generator=random)
    return images[picked], labels[picked]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats."""
    return F.cross_entropy(model(batch[0]), batch[1])
