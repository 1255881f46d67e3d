"""What a person sees while training, on stderr: a bar in a terminal, about ten lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loopscale.errors import one_line

OnStep = Callable[[dict[str, Any], int], None]


def warn(sentence: str) -> None:
    """Print a warning."""
    click.echo(f"loopscale: warning: {one_line(sentence)}", err=True)


@contextmanager
def progress() -> Iterator[OnStep]:
    """Give the function that is told of each step: its line of metrics.jsonl and the number of steps."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        tasks: list[TaskID] = []

        def show(line: dict[str, Any], steps: int) -> None:
            if not tasks:
                # `completed` at the start: after a resumption the time left counts only the steps that are left.
                tasks.append(bar.add_task("training", total=steps, completed=line["step"] - 1, said=""))
            bar.update(tasks[0], completed=line["step"], said=_said(line))

        yield show


def _line(line: dict[str, Any], steps: int) -> None:
    if line["step"] in (1, steps) or line["step"] % max(1, steps // 10) == 0:
        click.echo(f"step {line['step']}/{steps}, {_said(line)}", err=True)


def _said(line: dict[str, Any]) -> str:
    loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
    unit = "tokens" if "tokens_per_second" in line else "rows"
    return f"loss {loss}, {line[f'{unit}_per_second']:,.0f} {unit}/s"
