"""A live table of the trials of a study on stderr; plain lines where stderr is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

OnRecord = Callable[[dict[str, Any], int], None]
SHOWN = 8  # the best trials


@contextmanager
def watching(title: str) -> Iterator[OnRecord]:
    """Give the function that is told of each trial as it ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    trials: list[dict[str, Any]] = []
    began = time.monotonic()
    if not console.is_terminal:

        def line(record: dict[str, Any], count: int) -> None:
            click.echo(f"{count} trials, {time.monotonic() - began:.0f} s: {_row(record)}", err=True)

        yield line
        return
    with Live(console=console, refresh_per_second=4) as live:

        def show(record: dict[str, Any], count: int) -> None:
            trials.append(record)
            live.update(_table(f"{title}: {count} trials, {time.monotonic() - began:.0f} s", trials))

        yield show


def _table(title: str, trials: list[dict[str, Any]]) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table()
    names = list(trials[0]["cell"].get("values", {})) or ["lr", "strength"]
    for name in ("rank", "loops", *names, "seed", "loss"):
        table.add_column(name, justify="right")
    ranked = sorted(trials, key=lambda trial: float("inf") if trial["loss"] is None else trial["loss"])
    rows = [*enumerate(ranked[:SHOWN], start=1), ("last", trials[-1])]
    for rank, trial in rows:
        cell = trial["cell"]
        values = {**cell, **cell.get("values", {})}
        numbers = [f"{values[name]:.4g}" for name in names]
        table.add_row(str(rank), str(cell["loops"]), *numbers, str(cell["seed"]), outcome(trial))
    return Group(title, table)


def outcome(trial: dict[str, Any]) -> str:
    """The loss of a trial, or why there is none."""
    if "error" in trial:
        return "raised"
    if trial["loss"] is not None:
        return f"{trial['loss']:.4f}"
    return "stopped early" if trial.get("stopped") else "diverged"


def _row(trial: dict[str, Any]) -> str:
    cell = trial["cell"]
    values = cell.get("values") or {"lr": cell["lr"], "strength": cell["strength"]}
    shown = " ".join(f"{name}={value:.4g}" for name, value in values.items())
    return f"N={cell['loops']} {shown} seed {cell['seed']}: {outcome(trial)}"
