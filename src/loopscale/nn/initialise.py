"""Initial values and roles of the house model's parameters, in one place.

| parameter                  | initial value                       | why                                            |
|----------------------------|-------------------------------------|------------------------------------------------|
| embedding                  | N(0, 1)                             | the stream enters the core with RMS 1          |
| qk                         | N(0, 1 / fan_in)                    | keeps the branch O(1); independent of depth    |
| value, out, gate, up, down | the same * branch_gain              | Post-LN; `gpt2-init`: out and down alone; else 1 |
| readout                    | N(0, 1 / base_width)                | the 1/m_d output multiplier carries the width  |
| tied readout               | embedding * 1 / sqrt(base_width)    | logits O(1); the entry is multiplied back to 1 |
| linear injection           | N(0, 1 / 2 D)                       | fan-in of the concatenation [x, e]             |
| diagonal injection         | A = B = decay                       | pulls the stream towards e, where it starts    |
| visit embedding            | 0                                   | the network without it                         |
| gains                      | 1                                   |                                                |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loopscale.errors import UserError
from loopscale.nn.config import ModelConfig
from loopscale.parameterization import Role, get_rule


def initialise(model: Any, config: ModelConfig, seed: int) -> None:
    """Fill `model`'s parameters from `seed` alone; the global generator is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    rule = get_rule(config.rule)
    gain, outputs = rule.branch_gain(config.depth).value, rule.norm == "pre"
    base_width = config.base_width or config.width
    embedding_std = base_width**-0.5 if config.tied_readout else 1.0
    _normal(model.embedding.weight, embedding_std, generator)
    for block in (*model.prelude, *model.core, *model.coda):
        _block(block, gain, outputs, generator)
    if config.injection.kind == "linear":
        # One matrix on the concatenation [x, e]: its fan-in is 2 D.
        for weight in model.core.injection.parameters():
            _normal(weight, (2 * config.width) ** -0.5, generator)
    if model.readout is not None:
        _normal(model.readout.weight, base_width**-0.5, generator)


def _block(block: Any, gain: float, outputs: bool, generator: torch.Generator) -> None:
    """Fill a block; `gain` is on what writes into the stream (`outputs`), else on all but queries and keys."""
    attention, mlp = block.attention, block.mlp
    for linear in (attention.qk, attention.value, attention.out, mlp.gate, mlp.up, mlp.down):
        _normal(linear.weight, linear.in_features**-0.5, generator)
    last = (attention.out, mlp.down)
    with torch.no_grad():
        for linear in last if outputs else (attention.value, mlp.gate, mlp.up, *last):
            linear.weight.mul_(gain)


def _normal(weight: nn.Parameter, std: float, generator: torch.Generator) -> None:
    # Drawn on the CPU whatever the device, so that a seed means the same network everywhere.
    if weight.is_meta:
        return
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def role_of(name: str, ndim: int) -> Role:
    """Give the role of a parameter of the house model; raises `UserError` for a name that has none."""
    if name.startswith("embedding.") or name == "core.visit_embedding":
        return Role.EMBEDDING
    if name.startswith("readout."):
        return Role.READOUT
    if name.startswith("final_norm."):
        return Role.OUTER_GAIN
    if name.startswith("core.injection."):
        return Role.VISIT if ndim >= 2 else Role.OUTER_GAIN
    if name.split(".")[0] not in ("prelude", "core", "coda"):
        raise UserError(f"parameter {name!r} has no role: add it to role_of")
    return Role.HIDDEN if ndim >= 2 else Role.GAIN
