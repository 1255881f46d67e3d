"""loopscale: tune a looped Transformer once, at few loops, and train it at any number of loops.

The maths is imported at once and needs no torch; everything else is imported when first touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopscale.errors import UserError
from loopscale.lazy import on_first_use
from loopscale.parameterization import RULES, Depth, Role, Rule, Width, residual_scale

if TYPE_CHECKING:
    from loopscale.adapt import attach, attachment, convert, detach, fold, restore, unfold
    from loopscale.diagnosis import Monitor, check_parameterization, diagnose
    from loopscale.nn import (
        Loop,
        LoopedTransformer,
        ModelConfig,
        PostNormResidual,
        ScaledResidual,
        ScaledUpdate,
        apply_branch_gain,
    )
    from loopscale.optim import build_optimizer, param_groups, roles_of, schedule
    from loopscale.probe import watch
    from loopscale.train import shard_looped

__version__ = "0.1.0"

__getattr__ = on_first_use(
    __name__,
    {
        "adapt": "attach attachment convert detach fold unfold restore",
        "nn": "Loop LoopedTransformer ModelConfig PostNormResidual ScaledResidual ScaledUpdate apply_branch_gain",
        "optim": "build_optimizer param_groups roles_of schedule",
        "diagnosis": "check_parameterization diagnose Monitor",
        "probe": "watch",
        "train": "shard_looped",
    },
)

__all__ = [
    "RULES",
    "Depth",
    "Loop",
    "LoopedTransformer",
    "ModelConfig",
    "Monitor",
    "PostNormResidual",
    "Role",
    "Rule",
    "ScaledResidual",
    "ScaledUpdate",
    "UserError",
    "Width",
    "apply_branch_gain",
    "attach",
    "attachment",
    "build_optimizer",
    "check_parameterization",
    "convert",
    "detach",
    "diagnose",
    "fold",
    "param_groups",
    "residual_scale",
    "restore",
    "roles_of",
    "schedule",
    "shard_looped",
    "unfold",
    "watch",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
