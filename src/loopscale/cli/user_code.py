"""`--model`, `--objective` and `--rule`: code of the user's that the command line names, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopscale.cli.sentence import tell, warn
from loopscale.errors import UserError
from loopscale.factory import peek
from loopscale.parameterization import Rule, spell

if TYPE_CHECKING:
    from loopscale.study import UserCode


AGAIN = "delete their lines in trials.jsonl (those with an 'error') to repeat them"


def find_user_code(model: str | None, objective: str | None) -> UserCode | None:
    """Return what was named, or None; raises `UserError` when both were."""
    if model is not None and objective is not None:
        raise UserError("give --model or --objective, not both: an objective trains its model itself")
    if model is None and objective is None:
        return None
    if model is not None:
        peek(model)  # before the imports, which take seconds
    from loopscale.study import UserCode

    return UserCode.at(model, "model") if model is not None else UserCode.at(str(objective), "objective")


def name_of(place: str) -> str:
    """Return what a run or study of this place is called: its file or module.

    >>> name_of("models/mine.py:make_model"), name_of("package.mine:make_model")
    ('mine', 'mine')
    """
    return place.rpartition(":")[0].removesuffix(".py").replace("/", ".").rpartition(".")[2] or "model"


def tell_again(provenance: dict[str, Any], again: str = AGAIN) -> None:
    """Say at the end what was warned of before the trials, and which raised; `again` says how to repeat those."""
    for text in provenance.get("data", {}).get("warnings", []):
        warn(text)
    if errors := provenance.get("errors", []):
        tell(
            f"{len(errors)} of {provenance['trials']} trials raised and count as diverged, the first {errors[0]}: {again}"
        )


def find_rule(text: str) -> Rule | str:
    """Give the `Rule` that a place such as "file.py:RULE" names; a name without a colon is given back.

    Raises `UserError` when there is no such file or name, or it is not a rule.
    """
    if ":" not in text:
        return text
    from loopscale.train.place import load_name

    found, _ = load_name(text, "give file.py:RULE or package.module:RULE")
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
