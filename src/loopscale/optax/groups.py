"""Rate, Adam's epsilon and weight decay per role, and the optax transformation that applies them by label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from loopscale.errors import UserError, require, spelt
from loopscale.parameterization import Depth, Optimizer, Role, Rule, Width, get_rule, relative_layers

_OUTER = (Role.EMBEDDING, Role.READOUT, Role.OUTER_GAIN)
Rate = Any  # a number, an array, or an optax schedule: step -> rate


@spelt
@dataclass(frozen=True)
class Scaling:
    """What a rule needs to know of a network: its depth, and where they matter its width and base.

    `outer_lr` is a factor on the rate of what is visited once (embedding, readout, outer gains); their decay a step stays.

    >>> Scaling(Depth(loops=8, layers=4)).eps
    0.0625
    """

    depth: Depth
    strength: float = 1.0
    rule: str | Rule = "looped"
    width: Width | None = None
    base_layers: int | None = None
    outer_lr: float = 1.0

    def __post_init__(self) -> None:
        relative_layers(self.depth, self.base_layers)

    @property
    def eps(self) -> float:
        """The factor on every residual branch."""
        return get_rule(self.rule).residual_scale(self.depth, self.strength, self.base_layers).value

    def at(self, loops: int) -> Scaling:
        """Give the same scaling at a different number of loops."""
        return replace(self, depth=Depth(loops, self.depth.layers))


@dataclass(frozen=True)
class Group:
    """The numbers of one role. `lr` is a number, or a function of the step."""

    name: str
    lr: Any
    weight_decay: float
    eps: float


def groups(
    scaling: Scaling, lr: Rate, weight_decay: float = 0.1, eps: float = 1e-8, optimizer: Optimizer = "adamw"
) -> dict[str, Group]:
    """Give every role its numbers: the same as `loopscale.param_groups` gives a torch model.

    `lr` is the base rate, before the rule's multiplier: a number, an array that jax traces, or an optax schedule.

    Raises `UserError` for a rate that is not positive, and for an unknown rule or optimiser.

    >>> groups(Scaling(Depth(loops=8, layers=4)), lr=0.01)["hidden"].lr
    0.005
    """
    if not isinstance(scaling, Scaling):
        raise UserError(f"groups needs a Scaling, got {scaling!r}: groups(Scaling(Depth(loops=8, layers=4)), lr=0.01)")
    for name, rate in (("lr", lr), ("outer_lr", scaling.outer_lr)):
        if isinstance(rate, (int, float)) and not 0 < rate < float("inf"):
            raise UserError(f"{name} must be a positive number or a schedule, got {rate!r}")
    rule = get_rule(scaling.rule)
    made = {}
    for role in Role:
        values = rule.for_role(role, scaling.depth, scaling.width, scaling.base_layers, optimizer)
        outer = scaling.outer_lr if role in _OUTER else 1.0
        decay, adam_eps = weight_decay * values.weight_decay.value / outer, eps * values.adam_eps.value
        made[role.value] = Group(role.value, _times(lr, values.lr.value * outer), decay, adam_eps)
    return made


def _times(lr: Rate, factor: float) -> Any:
    if callable(lr):
        return lambda step: lr(step) * factor
    return lr * factor


def adamw(group: Group) -> Any:
    """Make AdamW of one role's numbers, with the betas of `loopscale.build_optimizer`."""
    optax = require("optax", "jax")
    return optax.adamw(group.lr, b1=0.9, b2=0.95, eps=group.eps, weight_decay=group.weight_decay)


def sgd(group: Group) -> Any:
    """Make SGD with momentum 0.95 of one role's numbers; wants `groups(..., optimizer="sgd")`."""
    optax = require("optax", "jax")
    return optax.chain(optax.add_decayed_weights(group.weight_decay), optax.sgd(group.lr, momentum=0.95))


def multi_transform(labels: Any, groups: Mapping[str, Group], make: Callable[[Group], Any] = adamw) -> Any:
    """Make one optimiser of a transformation per role: `optax.multi_transform` over `labels`.

    `make` turns a group into a transformation: `adamw`, `sgd`, or a function of yours.

    Raises `UserError` for a label without a group, and when optax is missing.
    """
    optax, tree = require("optax", "jax"), require("jax", "jax").tree_util
    used = sorted(set(tree.tree_leaves(labels)))
    missing = [label for label in used if label not in groups]
    if missing:
        raise UserError(f"label {missing[0]!r} has no group: labels are the names of roles, {', '.join(groups)}")
    # A tree of labels can itself be callable (an Equinox module): optax would call it.
    return optax.multi_transform({label: make(groups[label]) for label in used}, lambda params: labels)
