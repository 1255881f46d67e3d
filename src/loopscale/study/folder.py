"""Open a folder of trials for the one process that drives it, refuse what changes its trials, and say how to go on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from loopscale.errors import UserError
from loopscale.files import alone, new_folder
from loopscale.records import Trial, flat
from loopscale.study.local import refuse_import
from loopscale.study.user_code import UserCode
from loopscale.train import TrainConfig

LOCK = "study.lock"
ENOUGH = 3  # trials that raise, with none that does not, before a study gives up


class Observer(Protocol):
    """Whoever is told how a study goes."""

    def checked(self, description: dict[str, Any]) -> None:
        """Hear, before the first trial, what provenance says of the data or the user's model (`warnings` too)."""
        return

    def ended(self, trial: Trial, finished: int, left: int | None) -> None:
        """Hear of a trial that ended, how many have, and how many are known to be left (None: not known)."""
        return


class Silent(Observer):
    """An observer that says nothing."""


@contextmanager
def driven(folder: Path, marker: str, noun: str) -> Iterator[None]:
    """Hold the folder for this process; it is made when it is not there. `marker` is the file that says what it holds.

    The lock is the kernel's: it ends with the process, however that dies. It holds across machines where the file system
    carries locks.

    Raises `UserError` when a different process drives the folder (names it), or the folder holds something else.
    """
    refuse_import()
    if folder.exists() and not (folder / marker).exists() and not _begun(folder, marker):
        raise UserError(f"{folder} exists and is not a {noun}: name an empty or new folder with --out")
    busy = f"{{process}} runs the {noun} in {folder}: wait for it, or watch it with loopscale report {folder} --serve"
    with new_folder(folder):
        try:
            with alone(folder / LOCK, busy):
                yield
        finally:
            if not (folder / marker).exists() and _begun(
                folder, marker
            ):  # a mistake was found before there was a study
                (folder / LOCK).unlink(missing_ok=True)


def _begun(folder: Path, marker: str) -> bool:
    """Tell whether a folder is empty but for what a driver makes first."""
    return folder.is_dir() and all(
        path.name == LOCK or path.name.startswith(f".{marker}.") for path in folder.iterdir()
    )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name every value that differs between two configs, old -> new; the user's code by its file.

    >>> changes({"train": {"steps": 120}, "user_code": None}, {"train": {"steps": 300}, "user_code": None})
    ['train.steps 120 -> 300']
    """
    before, after = flat(old), flat(new)
    said = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        if name == "user_code.fingerprint" and before.get("user_code.place") == after.get("user_code.place"):
            said.append(f"{str(after['user_code.place']).rpartition(':')[0]} changed since")
        else:
            said.append(f"{name} {before.get(name, 'unset')} -> {after.get(name, 'unset')}")
    return said


def refuse(folder: Path, noun: str, changed: list[str]) -> None:
    """Raise `UserError` when something changed that makes other trials of the same settings."""
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"{folder} holds another {noun} ({', '.join(changed[:3])}{more}): give this one its own --out")


def check_errors(trials: Collection[Trial], least: int = ENOUGH) -> None:
    """Raise `UserError` when every trial raised, and there are at least so many: then there is nothing to judge."""
    if len(trials) >= least and all(trial.error is not None for trial in trials):
        first = next(iter(trials)).error
        raise UserError(f"all {len(trials)} trials raised, the first {first}: mend it, and name a new --out")


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
    raise UserError(f"{kept.place.rpartition(':')[0]} changed since {what}: name a new folder with --out")
