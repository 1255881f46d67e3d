"""`--model` and `--objective`: the user's code in a study, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loopscale.errors import UserError
from loopscale.factory import peek

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

    if model is not None:
        return UserCode.at(model, "model")
    return None if objective is None else UserCode.at(objective, "objective")


def study_name(place: str) -> str:
    """Return what a study of this place is called: its file or module.

    >>> study_name("models/mine.py:make_model"), study_name("package.mine:make_model")
    ('mine', 'mine')
    """
    return place.rpartition(":")[0].removesuffix(".py").replace("/", ".").rpartition(".")[2] or "model"


def checked(description: dict[str, Any]) -> None:
    """Say on stderr, before the trials, what the first look at a model of the user's own found: roles and warnings."""
    if description.get("roles_inferred"):
        click.echo(
            "loopscale: roles inferred from modules and names, state them with roles(model) if one is wrong", err=True
        )
        for line in role_lines(description["roles"]):
            click.echo(f"  {line}", err=True)
    for said in description.get("warnings", []):
        click.echo(f"loopscale: warning: {said}", err=True)


def tell(sentence: str) -> None:
    """Say something of the whole study, before its trials, on stderr."""
    click.echo(f"loopscale: {sentence}", err=True)


def role_lines(roles: dict[str, str]) -> list[str]:
    """Return a line for each role and kind of name, numbers starred.

    >>> role_lines({"h.0.fc.weight": "hidden", "h.1.fc.weight": "hidden", "head.weight": "readout"})
    ['hidden      h.*.fc.weight', 'readout     head.weight']
    """
    kinds = [
        (role, ".".join("*" if part.isdigit() else part for part in name.split("."))) for name, role in roles.items()
    ]
    return [f"{role:12}{name}" for role, name in dict.fromkeys(kinds)]


def user_sentences(provenance: dict[str, Any], again: str = AGAIN) -> list[str]:
    """Say at the end what was warned of before the trials, and which raised; `again` says how to repeat those."""
    said = [f"warning: {text}" for text in provenance.get("data", {}).get("warnings", [])]
    errors = provenance.get("errors", [])
    if errors:
        said.append(
            f"{len(errors)} of {provenance['trials']} trials raised and count as diverged, the first {errors[0]}: "
            f"{again}"
        )
    return said
