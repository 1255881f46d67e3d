"""Named parameters + roles + rule -> ordinary torch parameter groups."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, TypedDict, Unpack
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.optimizer import register_optimizer_step_pre_hook

from loopscale.errors import UserError, expect, settings
from loopscale.optim.roles import roles_of
from loopscale.parameterization import Depth, Optimizer, Role, Rule, Width, get_rule
from loopscale.speaker import Speaker, speaker, speakers
from loopscale.speaker import base_layers as stated_base

# Factors of adapters, by the words that PEFT, torchtune and models with adapters per visit use.
_LOW_RANK = re.compile(r"(^|[._])(lora|dora|adapters?|low_?rank)([._]|$|\d)", re.IGNORECASE)
OUTER = (Role.EMBEDDING, Role.READOUT, Role.OUTER_GAIN)


class Stated(TypedDict, total=False):
    """What a model may state itself and a caller may give instead, and `outer_lr`, a factor on the outer rates (1).

    `multiplied`: whether the logits carry the rule's 1/m_d; by default they do where the model states a `width_ratio`.
    """

    rule: str | Rule | None
    depth: Depth | None
    width: Width | None
    base_layers: int | None
    roles: Mapping[str, Role] | None
    outer_lr: float
    multiplied: bool | None


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    optimizer: Optimizer = "adamw",
    **stated: Unpack[Stated],
) -> list[dict[str, Any]]:
    """Make a group per role (`name`), with lr, weight decay and Adam's eps spelled out, for any torch optimiser.

    A model that states `roles()`, `depth`, `width_ratio`, `rule` and `config.base_layers`, as the house model does, needs
    no more; nor does a model with a `Loop` inside, whose roles `roles_of` infers, nor one after `attach` or `convert`
    (or its handle). `roles=` corrects some by name. For another model pass `roles=`, `depth=` and, as wanted, `rule=`,
    `width=`, `base_layers=`. `lr` is the base rate, before the rule's multiplier. Tied parameters are listed once. Frozen
    parameters are left out.

    `outer_lr` is a factor on the rate of what is visited once: embedding, readout, norms and biases outside the layers;
    their decay per step stays. Tune it once: it depends on neither N, L nor width. Under "muon" it is on everything that
    AdamW gets, whose rate has another unit; matrices of more than two axes get AdamW's multipliers there.

    A readout whose logits are not `multiplied` by 1/m_d (`output_multiplier`) gets the same training from its own numbers:
    1/m_d of the rate (1/m_d^2 under SGD), as much more decay, and an Adam eps without width. Its initial std is the
    model's: give it 1/m_d of that at the base width.

    Raises `UserError` for a parameter without a role, for loops of different depths, or a rate that is not positive.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> groups = param_groups(LoopedTransformer(ModelConfig(layers=4)), lr=0.01)
    >>> next(group["lr"] for group in groups if group["name"] == "hidden")
    0.005
    """
    settings(Stated, stated, param_groups)
    outer_lr = stated.get("outer_lr", 1.0)
    for name, rate in (("lr", lr), ("outer_lr", outer_lr)):
        if isinstance(rate, str) or not 0 < rate < float("inf"):
            raise UserError(f"{name} must be a positive number, got {rate!r}")
    if not 0 <= weight_decay < float("inf"):
        raise UserError(f"weight_decay must be a number of at least 0, got {weight_decay!r}")
    assigned, said = roles_of(model, stated.get("roles")), speakers(model)
    chosen = get_rule(_stated(model, said, "rule", stated.get("rule")))
    other = next((one.rule.name for one in said if one.rule.name != chosen.name), None)
    if other is not None:
        warnings.warn(
            f"the groups follow rule {chosen.name!r} and the model's branches {other!r}: leave rule= out, or give both "
            "the same",
            stacklevel=2,
        )
    depth, base = _stated(model, said, "depth", stated.get("depth")), stated.get("base_layers")
    base = base if base is not None or not said else stated_base(said[0])
    width, multiplied = _width(model, stated.get("width"), stated.get("multiplied"))
    members: dict[tuple[Role, Optimizer], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = assigned[name]
            members.setdefault((role, update_of(role, name, parameter, optimizer)), []).append(parameter)
    groups = []
    for role, update in sorted(members, key=lambda key: (list(Role).index(key[0]), key[1])):
        values = chosen.for_role(role, depth, width, base, update)
        factor = outer_lr if role in OUTER or update != optimizer else 1.0
        ratio = width.ratio if width is not None and role is Role.READOUT and not multiplied else 1.0
        factor /= ratio**2 if update == "sgd" else ratio
        groups.append(
            {
                "params": members[role, update],
                "name": role.value,
                "lr": lr * values.lr.value * factor,
                "initial_lr": lr * values.lr.value * factor,
                "weight_decay": weight_decay * values.weight_decay.value / factor,
                "eps": eps * values.adam_eps.value * ratio,
            }
        )
    return groups


_unseen: WeakSet[Any] = WeakSet()


def watch_groups(model: Any) -> None:
    """Warn at the first training step of `model`, under any framework, when its optimizer lacks the rule's groups.

    Raises `UserError` for a checkpoint that was not restored.
    """
    speaker(model)
    _every_optimizer()
    _unseen.add(model)


@cache
def _every_optimizer() -> None:
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Any, args: Any, kwargs: Any) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]} if _unseen else set()
    for model in [one for one in _unseen if one.training and not stepped.isdisjoint(map(id, one.parameters()))]:
        _unseen.discard(model)
        if not {group.get("name") for group in optimizer.param_groups} <= {role.value for role in Role}:
            _say_plain(model, "sgd" if isinstance(optimizer, SGD) else "adamw")


def _say_plain(model: Any, update: Optimizer) -> None:
    width = getattr(speaker(model), "width_ratio", None)
    for one in speakers(model):
        factor = one.rule.for_role(Role.HIDDEN, one.depth, width, stated_base(one), update).lr.value
        if factor != 1:
            warnings.warn(
                f"the optimizer gives every role one rate, and rule {one.rule.name!r} wants {factor:.3g} of it in the "
                "layers: pass optimizers=trainer_optimizers(model, args) to a Trainer, else use build_optimizer",
                stacklevel=4,
            )
            return


def update_of(role: Role, name: str, parameter: Tensor, optimizer: Optimizer) -> Optimizer:
    """Say which update a parameter really gets: under "muon" AdamW's, unless it is a matrix of the layers.

    The factors of low-rank adapters stay with AdamW: an orthogonal update of a factor is none of their product.
    """
    matrix = role in (Role.HIDDEN, Role.VISIT) and parameter.ndim == 2 and not _LOW_RANK.search(name)
    return optimizer if optimizer != "muon" or matrix else "adamw"


def _width(model: nn.Module, given: Width | None, multiplied: bool | None) -> tuple[Width | None, bool]:
    """Return the width, and whether the logits carry its 1/m_d: stated, or else as said once in a warning."""
    expect(given, given is None or isinstance(given, Width), "a Width", "such as width=Width(1024, base_width=256)")
    known = getattr(speaker(model), "width_ratio", None)
    if given is None or known is not None or multiplied is not None or given.ratio == 1:
        return (given if given is not None else known), multiplied is not False
    share = f"{1 / given.ratio:g}"
    warnings.warn(
        f"width= scales the rates of {type(model).__name__}, which does not state a width_ratio, so its logits count as "
        f"not multiplied by {share} and its readout gets {share} of the rate: start it at {share} of its std at the base "
        "width (a readout tied to the embedding needs the multiplier), and divide attention by head_dim; where the "
        "logits are multiplied, pass multiplied=True",
        stacklevel=3,
    )
    return given, False


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
        once = name == "depth" and any(value.loops == 1 for value in values)
        instead = ", or give blocks that run once no Loop but ScaledUpdate(scale=residual_scale(Depth(1, L)))"
        raise UserError(
            f"the model's loops state different values of {name}, {values[0]} and {values[-1]}: pass {name}="
            + instead * once
        )
    return values[0]
