"""What a person sees on stderr while a training or a study runs: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.sentence import tell, warn
from loopscale.parameterization.roles import role_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from loopscale.records import Trial

SHOWN = 8  # the best trials
SIGTERM = 143


class Display:
    """One place on the screen that is drawn anew; nothing is shown before the first step or trial has ended.

    It is what `train_run` calls at each step, and the observer of a study. title: of the study.
    """

    def __init__(self, title: str = "") -> None:
        from rich.console import Console
        from rich.live import Live

        self._title, self._began, self._told = title, time.monotonic(), False
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._best: list[Trial] = []
        self._bar: Any = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None and self._live.is_started:  # else it would print an empty line
            self._live.stop()

    def __call__(self, line: dict[str, Any], steps: int) -> None:
        """Show a step of a training: its line of metrics.jsonl, and the number of steps; elsewhere about ten lines."""
        loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
        unit = "tokens" if "tokens_per_second" in line else "rows"
        said = f"loss {loss}, {line[f'{unit}_per_second']:,.0f} {unit}/s"
        if self._live is None:
            if line["step"] in (1, steps) or line["step"] % max(1, steps // 10) == 0:
                click.echo(f"step {line['step']}/{steps}, {said}", err=True)
            return
        if self._bar is None:
            self._bar = _bar(line["step"] - 1, steps)
        self._bar.update(self._bar.task_ids[0], completed=line["step"], said=said)
        self._show(self._bar)

    def checked(self, description: dict[str, Any]) -> None:
        """Say, before the trials, what the first look at a model of the user's found: roles and warnings."""
        if description.get("roles_inferred"):
            tell("roles inferred from modules and names, state them with roles(model) if one is wrong")
            for line in role_lines(description["roles"]):
                click.echo(f"  {line}", err=True)
        for said in description.get("warnings", []):
            warn(said)

    def ended(self, trial: Trial, finished: int, left: int | None) -> None:
        """Show one more trial of a study."""
        count = f"{finished} trials" if left is None else f"{finished} of {finished + left} trials"
        said = f"{count}, {time.monotonic() - self._began:.0f} s"
        self._best = sorted([*self._best, trial], key=lambda one: one.height)[:SHOWN]
        if not self._told:
            click.echo(f"{self._title}; stop it any time, the same command goes on", err=True)
            self._told = True
        if self._live is None:
            click.echo(f"{said}: {_row(trial)}", err=True)
        else:
            self._show(table(f"{self._title}: {said}", self._best, trial))

    def _show(self, drawn: RenderableType) -> None:
        assert self._live is not None
        if not self._live.is_started:
            self._live.start()
        self._live.update(drawn)


@contextmanager
def watching(title: str) -> Iterator[Display]:
    """Show a study inside; the first SIGTERM unwinds the block and leaves with exit code 143, a second one kills."""
    held = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if held else None
    try:
        with Display(title) as display:
            yield display
    except _Terminated:
        tell("stopped by SIGTERM, the same command goes on")
        raise SystemExit(SIGTERM) from None
    finally:
        if held:
            signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    pass


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Terminated


def _bar(done: int, steps: int) -> Any:
    """Make the bar of a training; `done` steps at its start, so that the time left counts only those that are left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    said, left = TextColumn("{task.fields[said]}"), TimeRemainingColumn()
    bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), said, left)
    bar.add_task("training", total=steps, completed=done, said="")
    return bar


def table(title: str, best: list[Trial], last: Trial) -> RenderableType:
    """Draw the best trials and the last one as a table of rich's."""
    from rich.console import Group
    from rich.table import Table

    drawn = Table()
    names = list(last.cell.shown)
    for name in ("rank", "rule", "loops", *names, "seed", "loss"):
        drawn.add_column(name, justify="right")
    for rank, trial in [*enumerate(best, start=1), ("last", last)]:
        drawn.add_row(str(rank), *shown(trial, names))
    return Group(title, drawn)


def shown(trial: Trial, names: Sequence[str]) -> list[str]:
    """Return a row of a table of trials: rule, loops, the values of these names, seed, and loss or fate."""
    cell, values = trial.cell, trial.cell.shown
    numbers = [f"{values[name]:.4g}" if name in values else "" for name in names]
    return [cell.rule, str(cell.loops), *numbers, str(cell.seed), _outcome(trial)]


def _outcome(trial: Trial) -> str:
    if trial.error is not None:
        return "raised"
    if trial.loss is not None:
        return f"{trial.loss:.4f}"
    return "stopped early" if trial.stopped else "diverged"


def _row(trial: Trial) -> str:
    cell = trial.cell
    values = " ".join(f"{name}={value:.4g}" for name, value in cell.shown.items())
    return f"{cell.rule} N={cell.loops} {values} seed {cell.seed}: {_outcome(trial)}"
