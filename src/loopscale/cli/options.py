"""Options that several commands share, and what their values may be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from loopscale.errors import UserError, nearest

if TYPE_CHECKING:
    from loopscale.cli.executors import Where
    from loopscale.study import Design, Executor
    from loopscale.train import TrainConfig

P = TypeVar("P", bound="Design")
PATH = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
OPEN = click.option("--open", "open_page", is_flag=True, help="Open the page when done.")
SETS = click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a value of the config.")
DATA = click.option("--data", help="stdlib, synthetic:TASK, a file or folder, or hf:NAME.")
MODEL = click.option("--model", metavar="PLACE", help="Your own model: file.py:make_model, a factory; see below.")
OBJECTIVE = click.option(
    "--objective", metavar="PLACE", help="Your own Python objective: file.py:objective, values -> loss."
)
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
    for part in filter(None, text.split(",")):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in AXES:
            hint = f"write loops={name}" if name.isdecimal() else nearest(name, AXES)
            raise UserError(f"{option} has no axis {name!r}: {hint}")
        if not equals or not number.isdecimal() or int(number) < 1:
            raise UserError(f"{option} {part.strip()!r} is not axis=whole number, such as loops=32")
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


def with_data(sets: tuple[str, ...], data: str | None) -> tuple[str, ...]:
    """Add the source of --data to the overrides, which win."""
    return sets if data is None else (f"data.path={json.dumps(data)}", *sets)


def placed_study(plan: P, asked: TrainConfig, record: Path, where: Where) -> tuple[P, Executor]:
    """Choose what a study is trained in and on: the precision of all its trials, and where they run.

    asked: the config as it was typed. record: the file of the study's folder that holds the plan.
    """
    from loopscale.cli.sentence import tell
    from loopscale.study import with_precision

    plan = with_precision(plan, asked.train.precision, record, tell)
    return plan, where.make(record.parent, plan.typical_job)


def finish(result: Any, text: str, as_json: bool, page: Path | None = None) -> None:
    """Print what a study found, as JSON or in words, and open its page where there is one to open."""
    click.echo(json.dumps(result, indent=1) if as_json else text)
    if page is not None:
        click.launch(str(page))
