"""Say the command that goes on with a folder, and check that the code which it runs is the one that was named before."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from loopscale.errors import UserError
from loopscale.study.user_code import UserCode
from loopscale.train import TrainConfig

MADE = "the study in {} was made"


def command_of(name: str, code: UserCode | None, *words: object) -> str:
    """Write `loopscale NAME WORDS` as a person types it, with the user's code where there is some.

    >>> command_of("transfer", None, "--out", Path("runs/my study"), "--seeds", 6)
    "loopscale transfer --out 'runs/my study' --seeds 6"
    """
    named = () if code is None else (f"--{code.kind}", code.place)
    return shlex.join(["loopscale", name, *map(str, (*words, *named))])


def train_command(place: str | None, config: Path) -> str:
    """Give the command that trains a config as a file holds it, of the user's model at `place` where there is one.

    >>> train_command("mine.py:make_model", Path("tuned.toml")), train_command(None, Path("target.toml"))
    ('loopscale train --model mine.py:make_model --from tuned.toml', 'loopscale train target.toml')
    """
    words = ["loopscale", "train", str(config)] if place is None else []
    return shlex.join(words or ["loopscale", "train", "--model", str(place), "--from", str(config)])


def overrides(config: TrainConfig, usual: TrainConfig) -> list[str]:
    """Return `--set section.key=value` for each value of `config` that is not as usual."""
    here, there = (each.for_study().model_dump(mode="json") for each in (config, usual))
    return [
        word
        for section, values in here.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
        if value != there[section][key] and value is not None
        for word in ("--set", f"{section}.{key}={json.dumps(value)}")
    ]


def check_named(folder: Path, kept: UserCode | None, named: UserCode | None, made: str = MADE) -> None:
    """Raise `UserError` unless the code that a folder was made with is the code that the caller names."""
    if kept == named:
        return
    what = made.format(folder)
    if named is None and kept is not None:
        raise UserError(
            f"{what} with the {kept.kind} {kept.place}, and code of a folder runs only when you name it: "
            f"add --{kept.kind} {kept.place}"
        )
    if kept is None or named is None or (kept.kind, kept.place) != (named.kind, named.place):
        said = "the house model" if kept is None else f"the {kept.kind} {kept.place}"
        raise UserError(f"{what} with {said}: name that, or start again with --out")
    raise UserError(f"{kept.place.rpartition(':')[0]} changed since {what}: start again with --out")
