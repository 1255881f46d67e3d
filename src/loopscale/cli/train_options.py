"""What `loopscale train` was asked for: its options checked, its config read, its folder named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.options import name_of, spelt_rule
from loopscale.errors import UserError
from loopscale.factory import own_sizes

if TYPE_CHECKING:
    from loopscale.train import TrainConfig


def check_options(given: dict[str, Any]) -> None:
    """Raise `UserError` for options that contradict each other."""
    new = given["config"] is not None or (given["model"] is not None and given["resume"] is None)
    if not new and given["resume"] is None and given["tuned"] is not None:
        raise UserError(
            f"--from takes a model beside it: --model file.py:make_model, or loopscale train {given['tuned']}"
        )
    if new == (given["resume"] is not None):
        raise UserError(
            "give either a config file (or --model file.py:make_model) or --resume DIR: loopscale train config.toml"
        )
    if given["resume"] is not None and any(given[name] is not None for name in ("out", "tuned", "init_from", "rule")):
        raise UserError(
            "--resume continues a run exactly, so it takes no --from, --init-from, --rule or --out: leave them out"
        )
    if given["rule"] is not None and given["tuned"] is not None:
        raise UserError("--from brings the rule that was tuned: leave --rule out, or tune with it")
    if given["again"] and given["out"] is None:
        raise UserError("--continue needs the folder of the run: add --out DIR")


def asked_config(given: dict[str, Any], warn: Callable[[str], object]) -> TrainConfig:
    """Read the config, or take that of tuned.toml, which is whole; put the tuned values and the options on top."""
    from loopscale.train import load_config, make_config, read_toml, with_tuned

    rule = None if given["rule"] is None else spelt_rule(given["rule"])
    named = {"model.factory": given["model"], "model.rule": rule, "train.init_from": given["init_from"]}
    sets = [*given["sets"], *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None)]
    if given["config"] is None:
        if given["tuned"] is None:
            return make_config({}, (*own_sizes(given["model"]), *sets))
        return make_config(read_toml(given["tuned"]), sets)
    config = load_config(given["config"], sets)
    if given["tuned"] is not None:
        config, cautions = with_tuned(config, given["tuned"])
        for caution in cautions:
            warn(caution)
    return config


def resumed_sets(run: Path, given: dict[str, Any]) -> tuple[str, ...]:
    """Give the values that a continued run replaces; raises `UserError` for a user model that was not named here too."""
    from loopscale.train import open_run
    from loopscale.train.load_model import check_named

    if given["config"] is None:
        check_named(open_run(run), given["model"])
    sets = tuple(given["sets"]) if given["resume"] is not None else ()
    return sets if given["model"] is None else (*sets, f"model.factory={json.dumps(given['model'])}")


def free_folder(given: dict[str, Any]) -> Path:
    """Give runs/NAME, of the config or the model's file, or runs/NAME-2, -3, ... when that is taken."""
    name = given["config"].stem if given["config"] else name_of(given["model"] or "")
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def print_keys(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Print every key of the config and end the command, where the option asks for it."""
    if wanted:
        from loopscale.cli.keys import table

        click.echo(table())
        context.exit()
