"""Ordinary torch parameter groups and optimisers from roles and a rule."""

from loopscale.optim.build import SCHEDULES, MuonAdamW, build_optimizer, schedule
from loopscale.optim.groups import check_partition, param_groups, warn_of_plain_groups
from loopscale.optim.roles_of import roles_of
from loopscale.optim.stacked import StackedOptimizer

__all__ = [
    "SCHEDULES",
    "MuonAdamW",
    "StackedOptimizer",
    "build_optimizer",
    "check_partition",
    "param_groups",
    "roles_of",
    "schedule",
    "warn_of_plain_groups",
]
