"""loopscale: tune a looped Transformer once, at few loops, and train it at any number of loops.

The maths is imported at once and needs no torch; everything else is imported when first touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loopscale.errors import UserError
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

_LAZY = {
    "attach": "adapt",
    "attachment": "adapt",
    "convert": "adapt",
    "detach": "adapt",
    "fold": "adapt",
    "unfold": "adapt",
    "restore": "adapt",
    "Loop": "nn",
    "LoopedTransformer": "nn",
    "ModelConfig": "nn",
    "PostNormResidual": "nn",
    "ScaledResidual": "nn",
    "ScaledUpdate": "nn",
    "apply_branch_gain": "nn",
    "build_optimizer": "optim",
    "param_groups": "optim",
    "roles_of": "optim",
    "schedule": "optim",
    "check_parameterization": "diagnosis",
    "diagnose": "diagnosis",
    "Monitor": "diagnosis",
    "watch": "probe",
    "shard_looped": "train",
}

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


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"loopscale.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'loopscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
