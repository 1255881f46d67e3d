"""What a training will need, by arithmetic alone: parameters, FLOPs, memory, hours, dollars. Imports no torch."""

from loopscale.planning.plan import Machine, Plan, people, plan, study_hours
from loopscale.planning.shape import Shape
from loopscale.planning.work import Counted, Memory, Work, memory

__all__ = [
    "Counted",
    "Machine",
    "Memory",
    "Plan",
    "Shape",
    "Work",
    "memory",
    "people",
    "plan",
    "study_hours",
]
