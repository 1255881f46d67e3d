"""The looped model for transformers; importing this file registers it with AutoConfig and AutoModelForCausalLM."""

from __future__ import annotations

from loopscale.errors import transformers
from loopscale.integrations.hf_cache import LoopedCache
from loopscale.integrations.hf_config import LoopedConfig
from loopscale.integrations.hf_model import LoopedForCausalLM

__all__ = ["LoopedCache", "LoopedConfig", "LoopedForCausalLM"]


def register() -> None:
    """Teach the Auto classes the model type "loopscale"; a second call changes nothing."""
    library = transformers()
    library.AutoConfig.register(LoopedConfig.model_type, LoopedConfig, exist_ok=True)
    library.AutoModelForCausalLM.register(LoopedConfig, LoopedForCausalLM, exist_ok=True)


register()
