"""Open a folder of trials for the one process that drives it, and refuse what changes the meaning of its trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from loopscale.errors import UserError
from loopscale.files import alone, new_folder
from loopscale.records import flat
from loopscale.study.local import refuse_import

LOCK = "study.lock"
ENOUGH = 3  # trials that raise, with none that does not, before a study gives up


class Observer(Protocol):
    """Whoever is told how a study goes."""

    def checked(self, description: dict[str, Any]) -> None:
        """Hear, before the first trial, what provenance says of the data or the user's model (`warnings` too)."""

    def ended(self, record: dict[str, Any], finished: int, left: int | None) -> None:
        """Hear of a trial that ended, how many have, and how many are known to be left (None: not known)."""


class Silent:
    """An observer that says nothing."""

    def checked(self, description: dict[str, Any]) -> None:
        """Say nothing."""

    def ended(self, record: dict[str, Any], finished: int, left: int | None) -> None:
        """Say nothing."""


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


def check_errors(errors: Sequence[str], trials: int, least: int = ENOUGH) -> None:
    """Raise `UserError` when every trial raised, and there are at least so many: then there is nothing to judge."""
    if trials >= least and len(errors) == trials:
        raise UserError(f"all {trials} trials raised, the first {errors[0]}: mend it, and name a new --out")
