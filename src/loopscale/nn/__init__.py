"""Building blocks: the scaled residual, the loop, and the looped Transformer of the house."""

from loopscale.nn.config import ModelConfig
from loopscale.nn.gain import apply_branch_gain
from loopscale.nn.loop import Loop
from loopscale.nn.looped_core import LoopedCore
from loopscale.nn.recompute import Recompute
from loopscale.nn.residual import PostNormResidual, ScaledResidual, ScaledUpdate
from loopscale.nn.transformer import LoopedTransformer

__all__ = [
    "Loop",
    "LoopedCore",
    "LoopedTransformer",
    "ModelConfig",
    "PostNormResidual",
    "Recompute",
    "ScaledResidual",
    "ScaledUpdate",
    "apply_branch_gain",
]
