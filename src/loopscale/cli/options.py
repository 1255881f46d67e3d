"""Options that several commands share, and what their values may be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loopscale.errors import UserError, nearest
from loopscale.parameterization import Rule, spell

PATH = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
OPEN = click.option("--open", "open_page", is_flag=True, help="Open the page when done.")
SETS = click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a value of the config.")
MODEL = click.option("--model", metavar="PLACE", help="Your own model: file.py:make_model, a factory; see below.")
TRAINED = click.option(
    "--model", metavar="PLACE", help="The factory that was trained, for a run of your model: file.py:make_model."
)
AXES = ("loops", "layers", "width", "steps", "batch")


def list_of(kind: Callable[[str], Any], noun: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that reads a comma-separated list of a kind; a mistake names what the list is of."""

    def parse(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a comma-separated list of {noun}") from None

    return parse


COUNTS = list_of(int, "whole numbers such as 1,2,4")


def rate(text: str) -> float:
    """Return a number, or a power of two: 0.0156 or 2^-6."""
    return 2.0 ** float(text[2:]) if text.startswith("2^") else float(text)


def parse_axes(text: str, option: str) -> dict[str, int]:
    """Return "loops=32,layers=8" as whole numbers; raises `UserError` that names the nearest axis."""
    found = {}
    if "," not in text and text.count("=") > 1:
        raise UserError(f"{option} {text!r} has no commas between: {option} {','.join(text.split())}")
    for part in filter(None, text.split(",")):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in AXES:
            hint = f"write loops={name}" if name.isdecimal() else nearest(name, AXES)
            raise UserError(f"{option} has no axis {name!r}: {hint}")
        if not equals or not number.isdecimal() or int(number) < 1:
            raise UserError(f"{option} {part.strip()!r} is not axis=whole number, such as loops=32")
        if name in found:
            raise UserError(f"{option} names {name} twice: one number for each axis")
        found[name] = int(number)
    return found


def parse_seconds(text: str | None) -> float | None:
    """Return "90s", "10m" or "2h" in seconds; raises `UserError` for anything else.

    >>> parse_seconds("10m")
    600.0
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UserError(f"the budget {text!r} is no time: write 90s, 10m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def finish(result: Any, text: str, as_json: bool, page: Path | None = None) -> None:
    """Print what a study found, as JSON or in words, and open its page where there is one to open."""
    click.echo(json.dumps(result, indent=1) if as_json else text)
    if page is not None:
        click.launch(str(page))


def name_of(place: str) -> str:
    """Return what a run or study of this place is called: its file or module.

    >>> name_of("models/mine.py:make_model"), name_of("package.mine:make_model")
    ('mine', 'mine')
    """
    return place.rpartition(":")[0].removesuffix(".py").replace("/", ".").rpartition(".")[2] or "model"


def find_rule(text: str) -> Rule | str:
    """Give the `Rule` at a place such as "file.py:RULE", else the name as it is; raises `UserError` when there is none."""
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
    """Give a rule as a config holds it, a user's by its numbers; raises `UserError` as `find_rule` does."""
    found = find_rule(text)
    return found if isinstance(found, str) else spell(found)
