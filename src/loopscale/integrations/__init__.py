"""Bridges to what people already use, each imported when first touched. `huggingface` registers the Auto classes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopscale.integrations.huggingface import LoopedCache, LoopedConfig, LoopedForCausalLM
    from loopscale.integrations.trainer import LoopSampler, trainer_optimizers

_LAZY = {
    "LoopSampler": "trainer",
    "LoopedCache": "huggingface",
    "LoopedConfig": "huggingface",
    "LoopedForCausalLM": "huggingface",
    "trainer_optimizers": "trainer",
}

__all__ = ["LoopSampler", "LoopedCache", "LoopedConfig", "LoopedForCausalLM", "trainer_optimizers"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"loopscale.integrations.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'loopscale.integrations' has no attribute {name!r}")
