"""The rule for JAX: roles of a tree of parameters, an optax optimiser per role, a check over loops. No torch.

`import loopscale.optax as lo`; jax and optax are imported at the first call (extra `jax`).
"""

from loopscale.optax.check import check_parameterization
from loopscale.optax.groups import Group, Scaling, adamw, groups, multi_transform, sgd
from loopscale.optax.labels import labels
from loopscale.parameterization import RULES, Depth, ParameterizationCheck, Role, Width, residual_scale

__all__ = [
    "RULES",
    "Depth",
    "Group",
    "ParameterizationCheck",
    "Role",
    "Scaling",
    "Width",
    "adamw",
    "check_parameterization",
    "groups",
    "labels",
    "multi_transform",
    "residual_scale",
    "sgd",
]
