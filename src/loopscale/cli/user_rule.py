"""`--rule file.py:RULE`: a rule of the user's, by a file that the command line names."""

from __future__ import annotations

from loopscale.errors import UserError
from loopscale.parameterization import Rule, spell


def find_rule(text: str) -> Rule | str:
    """Give the `Rule` that a place such as "file.py:RULE" names; a name without a colon is given back.

    Raises `UserError` when there is no such file or name, or it is not a rule.
    """
    where, colon, name = text.rpartition(":")
    if not colon:
        return text
    from loopscale.train.place import import_source, unknown_name

    module = import_source(where, "give file.py:RULE or package.module:RULE")
    if not hasattr(module, name):
        raise UserError(unknown_name(where, module, name))
    found = getattr(module, name)
    if not isinstance(found, Rule):
        raise UserError(
            f"{text} is a {type(found).__name__}, not a rule: RULE = loopscale.Rule('mine', 'why', 'source')"
        )
    return found


def spelt_rule(text: str) -> str:
    """Give the rule as a config holds it: the name of the table, or a user's rule by its numbers.

    Raises `UserError` as `find_rule` does.
    """
    found = find_rule(text)
    return found if isinstance(found, str) else spell(found)
