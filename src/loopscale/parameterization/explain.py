"""All that a rule prescribes at one size, as rows for a table or JSON."""

from __future__ import annotations

from typing import Any

from loopscale.parameterization.depth import Depth, Width
from loopscale.parameterization.roles import Role
from loopscale.parameterization.rules import Optimizer, Rule, Value
from loopscale.parameterization.table import get_rule


def prescription(
    depth: Depth,
    width: Width | None = None,
    *,
    rule: str | Rule = "looped",
    strength: float = 1.0,
    base_layers: int | None = None,
    optimizer: Optimizer = "adamw",
) -> list[dict[str, Any]]:
    """Return rows `{"name", "value", "why", "source"}`: the scales first, then every multiplier of every role.

    >>> prescription(Depth(8, 4))[0]["value"]
    0.0625
    """
    chosen = get_rule(rule)
    scales = {
        "residual_scale": chosen.residual_scale(depth, strength, base_layers),
        "skip_scale": chosen.skip_scale(depth),
        "branch_gain": chosen.branch_gain(depth),
        "output_multiplier": chosen.output_multiplier(width or Width(1)),
    }
    rows = [_row(name, value) for name, value in scales.items()]
    for role in Role:
        values = chosen.for_role(role, depth, width, base_layers, optimizer)
        for kind in ("init_std", "lr", "adam_eps", "weight_decay"):
            rows.append(_row(f"{role.value}.{kind}", getattr(values, kind)))
    return rows


def _row(name: str, value: Value) -> dict[str, Any]:
    return {"name": name, "value": value.value, "why": value.why, "source": value.source}
