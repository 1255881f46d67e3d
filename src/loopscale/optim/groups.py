"""Named parameters + roles + rule -> ordinary torch parameter groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from loopscale.errors import UserError
from loopscale.optim.roles_of import roles_of
from loopscale.parameterization import Depth, Optimizer, Role, Rule, Width, get_rule
from loopscale.speaker import Speaker, speaker, speakers
from loopscale.speaker import base_layers as stated_base


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    rule: str | Rule | None = None,
    depth: Depth | None = None,
    width: Width | None = None,
    base_layers: int | None = None,
    roles: Mapping[str, Role] | None = None,
    optimizer: Optimizer = "adamw",
) -> list[dict[str, Any]]:
    """One group per role (`name`), with lr, weight decay and Adam's eps spelled out, for any torch optimiser.

    A model that states `roles()`, `depth`, `width_ratio`, `rule` and `config.base_layers`, as the house model does, needs
    no more; nor does a model with a `Loop` inside, whose roles are those of `roles_of`, nor one after `attach` or `convert`
    (or its handle). `roles=` corrects some by name. For another model pass `roles=`, `depth=` and, as wanted, `rule=`,
    `width=`, `base_layers=`. `lr` is the base rate, before the rule's multiplier. Tied parameters are listed once. Frozen
    parameters are left out.

    Raises `UserError` for a parameter without a role, for loops of different depths, or a rate that is not positive.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> groups = param_groups(LoopedTransformer(ModelConfig(layers=4)), lr=0.01)
    >>> next(group["lr"] for group in groups if group["name"] == "hidden")
    0.005
    """
    if not (lr > 0 and lr < float("inf")):
        raise UserError(f"lr must be a positive number, got {lr!r}")
    parameters = dict(model.named_parameters())
    assigned, said = roles_of(model, roles), speakers(model)
    chosen = get_rule(_stated(model, said, "rule", rule))
    size = _stated(model, said, "depth", depth)
    ratio = width if width is not None else getattr(speaker(model), "width_ratio", None)
    base = base_layers if base_layers is not None or not said else stated_base(said[0])
    groups = []
    for role in Role:
        members = [p for name, p in parameters.items() if assigned[name] is role and p.requires_grad]
        if members:
            values = chosen.for_role(role, size, ratio, base, optimizer)
            groups.append(
                {
                    "params": members,
                    "name": role.value,
                    "lr": lr * values.lr.value,
                    "initial_lr": lr * values.lr.value,
                    "weight_decay": weight_decay * values.weight_decay.value,
                    "eps": eps * values.adam_eps.value,
                }
            )
    return groups


def warn_of_plain_groups(model: Any, optimizer: Any) -> None:
    """Warn when an optimizer of a model that states a rule has not the rule's groups: one rate for every role."""
    names = {group.get("name") for group in getattr(optimizer, "param_groups", ())}
    if optimizer is not None and speakers(model) and not names <= {role.value for role in Role}:
        warnings.warn(
            "the optimizer does not have the rule's parameter groups, so every role has one rate: pass "
            "optimizers=trainer_optimizers(model, args) to the Trainer, or make it with build_optimizer",
            stacklevel=3,
        )


def check_partition(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Raise `UserError` naming a trainable parameter that is in no group, or in two."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    seen: set[int] = set()
    for parameter in (p for group in groups for p in group["params"]):
        if id(parameter) in seen:
            raise UserError(f"parameter {names.get(id(parameter), '?')!r} is listed twice: leave it in one group")
        seen.add(id(parameter))
    missing = [name for key, name in names.items() if key not in seen]
    if missing:
        raise UserError(f"parameter {missing[0]!r} is in no group: give it a role")


def _stated(model: Any, said: list[Speaker], name: str, given: Any) -> Any:
    """Return what the caller gave, else what the model or all its loops state."""
    if given is not None:
        return given
    values = [getattr(one, name) for one in said]
    if not values:
        raise UserError(
            f"{type(model).__name__} does not state its {name}: pass {name}=, call attach(model, loops=N) first, or put "
            "a Loop inside"
        )
    if any(other != values[0] for other in values):
        raise UserError(
            f"the model's loops state different values of {name}, {values[0]} and {values[-1]}: pass {name}="
        )
    return values[0]
