"""K trainings of one graph at once: the house model and a user's model as members of one batched network."""

from loopscale.batched.batched import Stack, UnstackableError
from loopscale.batched.fit import fit_stack
from loopscale.batched.house import house_stack, same_graph, why_not
from loopscale.batched.user import own_stack

__all__ = ["Stack", "UnstackableError", "fit_stack", "house_stack", "own_stack", "same_graph", "why_not"]
