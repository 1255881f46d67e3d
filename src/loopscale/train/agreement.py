"""Whether a model of the user's own applies what the config says: the eps of its branches, the factors of its groups."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from loopscale.nn import Loop
from loopscale.nn.residual import HoldsScale
from loopscale.parameterization import Depth, Role, Rule, get_rule
from loopscale.speaker import speaker, speakers
from loopscale.train.config import ModelSection, TrainConfig


def disagreements(model: nn.Module, config: TrainConfig, target: TrainConfig | None = None) -> list[str]:
    """Return where a model built at `config`, which ran once, applies another eps or other rates than the config says.

    At most one sentence on eps and one on the width, each with what to pass. `target` is the size that the values are
    carried to: what the model's loop does there is worked out from what it was given here.
    """
    here, there = config.model, (target or config).model
    loops = speakers(model)
    if not loops:
        return _of_parts(model, here)
    return [*_of_loop(loops[0], len(loops) == 1, here, there), *_of_width(model, there)]


def _of_loop(loop: Any, alone: bool, here: ModelSection, there: ModelSection) -> list[str]:
    """Return the sentence on a `Loop`, or on the handle of `attach`, if there is one to be said."""
    nested = isinstance(loop, nn.Module) and any(isinstance(part, Loop) for part in loop.modules() if part is not loop)
    simple = alone and not nested  # else what N and L are to each loop is its own affair
    wrong, name = _wrong(loop, here, simple), type(loop).__name__
    strength, base = getattr(loop, "strength", here.strength), getattr(loop, "base_layers", here.base_layers)
    near = here.depth if simple else loop.depth
    far = near if there is here or not simple else there.depth

    def carried(size: Depth) -> float:
        return float(loop.rule.residual_scale(size, strength, base).value)

    def planned(size: Depth) -> float:
        return float(get_rule(here.rule).residual_scale(size, here.strength, there.base_layers).value)

    def hidden_rate(rule: Rule, base: int | None) -> float:
        return rule.for_role(Role.HIDDEN, far, None, base).lr.value

    gaps = [_gap(near, EPS, _measured(loop) if simple else carried(near), planned(near))]
    gaps.append(_gap(far, EPS, carried(far), planned(far)) if far != near else None)
    gaps.append(_gap(far, RATE, hidden_rate(loop.rule, base), hidden_rate(get_rule(here.rule), there.base_layers)))
    found = next((gap for gap in gaps if gap), None)
    return [] if found is None else [f"the model's {name} {found}: {_advice(name, wrong)}"]


def _wrong(loop: Any, size: ModelSection, counts: bool) -> dict[str, Any]:
    """Return what the loop was given otherwise than the config says (`counts`: N and L too), with the right value."""
    has = {"rule": loop.rule.name, "strength": getattr(loop, "strength", size.strength)}
    has["base_layers"] = getattr(loop, "base_layers", size.base_layers) or 1  # without a base L counts absolutely
    wanted: dict[str, Any] = {"rule": size.rule, "strength": size.strength, "base_layers": size.base_layers or 1}
    if counts:
        has |= {"loops": loop.depth.loops, "layers": loop.depth.layers}
        wanted |= {"loops": size.loops, "layers": size.layers}
    return {name: value for name, value in wanted.items() if has[name] != value}


def _advice(loop: str, wrong: dict[str, Any]) -> str:
    if not wrong:
        return f"let the forward pass visit it as often as the factory's loops says ({loop}.forward takes loops=)"
    given = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
    return f"let the factory take {' and '.join(wrong)} and pass {given} to the {loop}"


def _measured(loop: Any) -> float:
    """Return the eps that the branches got in the forward pass; a handle says its own."""
    if not isinstance(loop, Loop):
        return float(loop.residual_scale)
    return next(float(part.scale) for part in loop.modules() if isinstance(part, HoldsScale))


EPS, RATE = "applies eps = {:.4g}", "gives param_groups a hidden rate of {:.4g} of lr"


def _gap(size: Depth, does: str, mine: float, plan: float) -> str | None:
    # A factor rounded for print is no other factor.
    if math.isclose(mine, plan, rel_tol=1e-3):
        return None
    return f"{does.format(mine)} at N = {size.loops}, L = {size.layers} where the plan says {plan:.4g}"


def _of_parts(model: nn.Module, size: ModelSection) -> list[str]:
    """Scaled branches without a loop around them, of which not one carries the plan's eps (a prelude may have its own)."""
    parts = [part for part in model.modules() if isinstance(part, HoldsScale)]
    plan = get_rule(size.rule).residual_scale(size.depth, size.strength, size.base_layers).value
    gaps = [_gap(size.depth, EPS, float(part.scale), plan) for part in parts]
    if not parts or not all(gaps):
        return []
    name = type(parts[0]).__name__
    return [f"the model's {name} {gaps[0]}: let the factory take residual_scale and pass it as scale="]


def _of_width(model: nn.Module, size: ModelSection) -> list[str]:
    ratio, plan = getattr(speaker(model), "width_ratio", None), size.width_ratio
    if plan.ratio == (1.0 if ratio is None else ratio.ratio):
        return []
    return [
        f"ls.param_groups(model) is not told the width: at d = {size.width} give it width=ls.Width({size.width}, "
        f"base_width={size.base_width}), as this run does, or its hidden rates are not the plan's; and let "
        f"the factory multiply the logits by output_multiplier, {1 / plan.ratio:g} there, or start its readout "
        "at that share of its std"
    ]
