"""Pure maths of the parameterization: standard library only, no torch."""

from loopscale.parameterization.depth import Depth, Width, relative_layers
from loopscale.parameterization.flat import FLAT, CheckRow, ParameterizationCheck
from loopscale.parameterization.roles import Role, check_roles, role_by_name, spread_roles
from loopscale.parameterization.rules import OPTIMIZERS, Optimizer, RoleValues, Rule, Value
from loopscale.parameterization.table import RULES, get_rule, prescription, residual_scale, spell

__all__ = [
    "FLAT",
    "OPTIMIZERS",
    "RULES",
    "CheckRow",
    "Depth",
    "Optimizer",
    "ParameterizationCheck",
    "Role",
    "RoleValues",
    "Rule",
    "Value",
    "Width",
    "check_roles",
    "get_rule",
    "prescription",
    "relative_layers",
    "residual_scale",
    "role_by_name",
    "spell",
    "spread_roles",
]
