"""A rule of the user's as text: "mine(loops_exponent=0.75)", its numbers and nothing else.

A config, a trial's key, a record and a worker hold the text, so that no code of the user's is needed to read them.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import MISSING, fields
from typing import Any

from loopscale.errors import UserError, nearest
from loopscale.parameterization.rules import Rule

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
