"""The conformance table: every named rule is one row. A rule of your own joins by adding a row."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import MISSING, fields
from typing import Any

from loopscale.errors import UserError, expect, nearest
from loopscale.parameterization.depth import Depth, Width
from loopscale.parameterization.roles import Role
from loopscale.parameterization.rules import COMPLETEP, PAPER, Optimizer, Rule, Value

NUMBERS = {field.name: field.default for field in fields(Rule) if field.default is not MISSING}
LONGEST = 400  # characters


def spell(rule: Rule) -> str:
    """Write a rule as text that `parse` reads back; of its fields, those that differ from `Rule`'s defaults.

    Raises `UserError` for a name that is not one word, and for a field of the wrong type.

    >>> spell(Rule("mine", "three quarters", "me", loops_exponent=0.75))
    'mine(loops_exponent=0.75)'
    """
    given = {name: getattr(rule, name) for name, default in NUMBERS.items() if getattr(rule, name) != default}
    if not re.fullmatch(r"[A-Za-z][\w-]*", str(rule.name)):
        raise UserError(f"the name of a rule is a word, such as 'mine', not {rule.name!r}")
    if type(rule) is not Rule:
        raise UserError(
            f"rule {rule.name!r} is a {type(rule).__name__}: make it a loopscale.Rule, which is numbers alone"
        )
    _check(rule.name, given)
    return f"{rule.name}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def parse(text: str) -> Rule | None:
    """Read a rule that `spell` wrote; None for text that is not of that form.

    Raises `UserError` for a field that a rule does not have, or a value of the wrong type.

    >>> parse("mine(loops_exponent=0.75)").loops_exponent
    0.75
    """
    form = re.fullmatch(r"([A-Za-z][\w-]*)\((.*)\)", text)
    if form is None or len(text) > LONGEST:
        return None
    try:
        call = ast.parse(f"f({form[2]})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError):
        raise UserError(f"rule {text!r} cannot be read: write it like mine(loops_exponent=0.75)") from None
    _check(form[1], given)
    return Rule(text, "a rule of the user's, by its numbers", "the user", **given)


def _check(name: str, given: dict[str, Any]) -> None:
    for field, value in given.items():
        if field not in NUMBERS:
            raise UserError(f"rule {name!r} has no field {field!r}: {nearest(field, NUMBERS)}")
        if field == "norm":
            fits, wanted = value in ("pre", "post"), "'pre' or 'post'"
        elif field == "claims_transfer":
            fits, wanted = isinstance(value, bool), "True or False"
        else:
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            fits, wanted = number or (value is None and NUMBERS[field] is None), "a number"
        if not fits:
            raise UserError(f"rule {name!r} has {field} = {value!r}: it must be {wanted}")


# Post-LN rules claim no transfer here: with trained norm gains the first step of a Post-LN network grows over N (the house
# model's slope is near +0.7, +0.5 in docs/blocks.md's example), and only without gains and biases it is flat.
_ROWS = (
    Rule("looped", "lambda / (N sqrt(m_L)): visits add coherently, layers in quadrature (default)", PAPER,
         loops_exponent=1.0, layers_exponent=0.5, claims_transfer=True),
    Rule("looped-complete", "lambda / (N m_L): the CompleteP exponent on the layer axis too", f"{PAPER}, {COMPLETEP}",
         loops_exponent=1.0, layers_exponent=1.0, claims_transfer=True),
    Rule("sqrt", "lambda / sqrt(N m_L): the untied-depth rule applied to the unrolled depth", "arXiv:2310.02244",
         loops_exponent=0.5, layers_exponent=0.5),
    Rule("none", "lambda: no depth factor at all", "common practice"),
    Rule("depth-mup", "Depth-muP on the unrolled depth: branch and rate / sqrt(N m_L)", "arXiv:2310.02244",
         loops_exponent=0.5, layers_exponent=0.5, rate_loops_exponent=0.5),
    Rule("tied-lr-sqrt", "the rule in the optimiser: no scale, the rate of looped weights / sqrt(N)", "arXiv:2606.16825",
         rate_loops_exponent=0.5),
    Rule("tied-lr", "the rule in the optimiser: no scale, the rate of looped weights / N", "arXiv:2606.16825",
         rate_loops_exponent=1.0),
    Rule("gpt2-init", "no scale, output projections start at 1/sqrt(2 N L) of their std: what most code does",
         "GPT-2 (Radford et al. 2019)", gain_exponent=0.5),
    Rule("deepnorm", "Post-LN, skip (2E)^1/4, initial gain (8E)^-1/4, E = N L", "arXiv:2203.00555",
         norm="post", skip_exponent=0.25, gain_exponent=0.25),
    Rule("deeploop", "Post-LN, skip (2E)^1/2, initial gain (8E)^-1/2, E = N L", "arXiv:2607.13491",
         norm="post", skip_exponent=0.5, gain_exponent=0.5),
)  # fmt: skip

RULES: dict[str, Rule] = {rule.name: rule for rule in _ROWS}


def get_rule(rule: str | Rule) -> Rule:
    """Look a rule up by name; a `Rule` passes through, and a user's rule is read from its numbers (`spell`).

    Raises `UserError` for an unknown name, with the nearest known one.

    >>> get_rule("looped").loops_exponent
    1.0
    """
    if isinstance(rule, Rule):
        return rule
    expect(rule, isinstance(rule, str), "a rule's name or a Rule", f"known: {', '.join(RULES)}")
    if rule not in RULES:
        if (spelled := parse(rule)) is not None:
            return spelled
        if ":" in rule:
            raise UserError(
                f"rule {rule!r} names a file, which runs only where the command line names it: --rule {rule}"
            )
        raise UserError(f"unknown rule {rule!r}: {nearest(str(rule), RULES)}")
    return RULES[rule]


def residual_scale(
    depth: Depth, strength: float = 1.0, *, rule: str | Rule = "looped", base_layers: int | None = None
) -> float:
    """Return eps = lambda / (N sqrt(L)), the factor on every residual branch (attention and MLP separately).

    `strength` is lambda, tuned once at the base. With `base_layers`, L counts relative to it; N is always absolute.

    Raises `UserError` for a bad depth, strength, base or rule. Source: arXiv:2606.18524.

    >>> residual_scale(Depth(loops=8, layers=4))
    0.0625
    >>> residual_scale(Depth(loops=8, layers=4), base_layers=4)
    0.125
    """
    return get_rule(rule).residual_scale(depth, strength, base_layers).value


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
