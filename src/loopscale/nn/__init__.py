"""Building blocks: the scaled residual, the loop, and the looped Transformer of the house."""

from loopscale.nn.compiled import Comparison, compile_checked
from loopscale.nn.config import ModelConfig
from loopscale.nn.layers import Attention, chunked_cross_entropy, folded_attention
from loopscale.nn.loop import Loop, apply_branch_gain
from loopscale.nn.past import KeyValueCache, Past, last_visit, per_visit
from loopscale.nn.residual import PostNormResidual, ScaledResidual, ScaledUpdate
from loopscale.nn.sampler import FixedLoops
from loopscale.nn.transformer import LoopedCore, LoopedTransformer, Pace
from loopscale.nn.visits import Recompute

__all__ = [
    "Attention",
    "Comparison",
    "FixedLoops",
    "KeyValueCache",
    "Loop",
    "LoopedCore",
    "LoopedTransformer",
    "ModelConfig",
    "Pace",
    "Past",
    "PostNormResidual",
    "Recompute",
    "ScaledResidual",
    "ScaledUpdate",
    "apply_branch_gain",
    "chunked_cross_entropy",
    "compile_checked",
    "folded_attention",
    "last_visit",
    "per_visit",
]
