"""Bridges to what people already use, each imported when first touched. `huggingface` registers the Auto classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopscale.lazy import on_first_use

if TYPE_CHECKING:
    from loopscale.integrations.huggingface import LoopedCache, LoopedConfig, LoopedForCausalLM
    from loopscale.integrations.trainer import LoopSampler, trainer_optimizers

__getattr__ = on_first_use(
    __name__,
    {
        "trainer": "LoopSampler trainer_optimizers",
        "huggingface": "LoopedCache LoopedConfig LoopedForCausalLM",
    },
)

__all__ = ["LoopSampler", "LoopedCache", "LoopedConfig", "LoopedForCausalLM", "trainer_optimizers"]
