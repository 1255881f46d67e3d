"""Show the trials of a study on stderr as they end: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import click

SHOWN = 8  # the best trials


class Watching:
    """A context in which trials are shown; nothing is before the first has ended, so that a mistake is one sentence.

    checked: called with what was found of the data or of the user's model before the first trial.
    """

    def __init__(self, title: str, checked: Any = lambda description: None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title, self._began = title, time.monotonic()
        self.checked = checked
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._best: list[dict[str, Any]] = []
        self._told = False

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None and self._live.is_started:  # else it would print an empty line
            self._live.stop()

    def ended(self, record: dict[str, Any], finished: int, left: int | None) -> None:
        """Show one more trial."""
        count = f"{finished} trials" if left is None else f"{finished} of {finished + left} trials"
        said = f"{count}, {time.monotonic() - self._began:.0f} s"
        self._best = sorted([*self._best, record], key=_loss)[:SHOWN]
        if not self._told:
            click.echo(f"{self._title}; stop it any time, the same command goes on", err=True)
            self._told = True
        if self._live is None:
            click.echo(f"{said}: {_row(record)}", err=True)
        else:
            if not self._live.is_started:
                self._live.start()
            self._live.update(table(f"{self._title}: {said}", self._best, record))


def table(title: str, best: list[dict[str, Any]], last: dict[str, Any]) -> Any:
    """Draw the best trials and the last one as a table of rich's."""
    from rich.console import Group
    from rich.table import Table

    drawn = Table()
    names = list(_values(last))
    for name in ("rank", "rule", "loops", *names, "seed", "loss"):
        drawn.add_column(name, justify="right")
    for rank, trial in [*enumerate(best, start=1), ("last", last)]:
        cell, values = trial["cell"], _values(trial)
        numbers = [f"{values[name]:.4g}" for name in names]
        drawn.add_row(str(rank), str(cell["rule"]), str(cell["loops"]), *numbers, str(cell["seed"]), outcome(trial))
    return Group(title, drawn)


def outcome(trial: dict[str, Any]) -> str:
    """Say the loss of a trial, or why there is none."""
    if trial.get("error") is not None:
        return "raised"
    if trial["loss"] is not None:
        return f"{trial['loss']:.4f}"
    return "stopped early" if trial.get("stopped") else "diverged"


def _loss(trial: dict[str, Any]) -> float:
    return float("inf") if trial["loss"] is None else float(trial["loss"])


def _values(trial: dict[str, Any]) -> dict[str, float]:
    cell = trial["cell"]
    return cell.get("values") or {name: cell[name] for name in ("lr", "strength") if cell.get(name) is not None}


def _row(trial: dict[str, Any]) -> str:
    cell = trial["cell"]
    shown = " ".join(f"{name}={value:.4g}" for name, value in _values(trial).items())
    return f"{cell['rule']} N={cell['loops']} {shown} seed {cell['seed']}: {outcome(trial)}"
