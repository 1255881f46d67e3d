"""Building blocks: the scaled residual, the loop, and the looped Transformer of the house."""

from loopscale.nn.config import ModelConfig
from loopscale.nn.loop import Loop
from loopscale.nn.looped_core import LoopedCore
from loopscale.nn.recompute import Recompute
from loopscale.nn.residual import ScaledResidual
from loopscale.nn.transformer import LoopedTransformer

__all__ = ["Loop", "LoopedCore", "LoopedTransformer", "ModelConfig", "Recompute", "ScaledResidual"]
