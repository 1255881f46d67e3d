"""Building blocks: the scaled residual, the loop, and the looped Transformer of the house."""

from loopscale.nn.compiled import Comparison, compile_checked
from loopscale.nn.config import ModelConfig
from loopscale.nn.gain import apply_branch_gain
from loopscale.nn.loop import Loop
from loopscale.nn.looped_core import LoopedCore
from loopscale.nn.past import KeyValueCache, Past, last_visit, per_visit
from loopscale.nn.recompute import Recompute
from loopscale.nn.residual import PostNormResidual, ScaledResidual, ScaledUpdate
from loopscale.nn.transformer import LoopedTransformer

__all__ = [
    "Comparison",
    "KeyValueCache",
    "Loop",
    "LoopedCore",
    "LoopedTransformer",
    "ModelConfig",
    "Past",
    "PostNormResidual",
    "Recompute",
    "ScaledResidual",
    "ScaledUpdate",
    "apply_branch_gain",
    "compile_checked",
    "last_visit",
    "per_visit",
]
