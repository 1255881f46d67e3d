"""K trainings of one graph at once: the house model and a user model as members of one batched network."""

from loopscale.batched.batched import Stack, UnstackableError, fit_stack
from loopscale.batched.house import house_stack, same_graph, why_not
from loopscale.batched.user import user_stack

__all__ = ["Stack", "UnstackableError", "fit_stack", "house_stack", "same_graph", "user_stack", "why_not"]
