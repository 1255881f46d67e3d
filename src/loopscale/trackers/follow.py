"""Send the lines of metrics.jsonl to trackers, each step once: live, after a resumption, or when the run is finished.

RUN/trackers/NAME.step holds the last step that the tracker NAME was given, so that nothing is sent twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from loopscale.errors import UserError, first_line, nearest, require
from loopscale.files import alone, no_link, writing
from loopscale.records import read_steps
from loopscale.trackers.kinds import TRACKERS
from loopscale.trackers.protocol import Tracker, flat, identity

Line = dict[str, Any]


@dataclass(frozen=True)
class Tracked:
    """What `track_run` did: the tracker, how many steps were new, the last step, and where to look."""

    tracker: str
    added: int
    step: int
    place: str


def check_trackers(names: Iterable[str]) -> None:
    """Raise `UserError` for an unknown tracker, or one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r}: {nearest(str(name), TRACKERS)}")
        require(TRACKERS[name].module, "track")


@contextmanager
def following(run: Path, names: Iterable[str]) -> Iterator[Callable[[Line], None]]:
    """Give a function that sends a line of metrics.jsonl, just written, to the trackers.

    Lines from before that a tracker has not seen are sent first. A tracker that fails is left out with a warning: training
    goes on, and `track_run` sends what is missing.

    Raises `UserError` as `check_trackers`, and when another process sends this run.
    """
    names = list(dict.fromkeys(names))
    check_trackers(names)
    with ExitStack() as opened:
        sinks = [opened.enter_context(_sink(run, name)) for name in names]
        for sink in sinks:
            sink.catch_up()

        def send(line: Line) -> None:
            for sink in sinks:
                sink.try_to_send(line)

        yield send


def track_run(run: str | Path, names: Iterable[str]) -> list[Tracked]:
    """Send to each tracker the steps of a run that it has not seen.

    Raises `UserError` for a folder without metrics, an unknown or missing tracker, or while the run is being tracked.
    """
    run, names = Path(run), list(names)
    if not (run / "config.toml").is_file() or not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} is no run with metrics: give the folder that loopscale train wrote")
    check_trackers(names)
    done = []
    for name in names:
        with _sink(run, name) as sink:
            before = sink.sent
            sink.catch_up()
            if sink.failed:
                raise UserError(f"{name} took the steps up to {sink.last} and then failed: {sink.failed}")
            done.append(Tracked(name, sink.sent - before, sink.last, TRACKERS[name].place.format(run=run)))
    return done


class _Sink:
    """One tracker of one run; opened at the first new step."""

    def __init__(self, run: Path, name: str, mark: TextIO) -> None:
        self.run, self.name, self.mark = run, name, mark
        text = mark.read().strip()
        self.last = int(text) if text.isdecimal() else 0
        self.sent, self.failed = 0, ""
        self.tracker: Tracker | None = None

    def catch_up(self) -> None:
        """Send what is in metrics.jsonl and was not sent."""
        for line in read_steps(self.run / "metrics.jsonl"):
            self.try_to_send(line)

    def try_to_send(self, line: Line) -> None:
        """Send a line unless its step was sent; a failure of the tracker's own is a warning."""
        if self.failed or line["step"] <= self.last:
            return
        try:
            if self.tracker is None:
                self.tracker = TRACKERS[self.name].open(identity(self.run))
            self.tracker.log(line["step"], flat(line))
        except Exception as problem:  # trackers raise anything, and training must go on
            self.failed = first_line(problem)
            warnings.warn(
                f"{self.name} failed at step {line['step']} ({self.failed}): training goes on without it; later, "
                f"loopscale track {self.run} --to {self.name} sends what is missing",
                stacklevel=2,
            )
            return
        self.sent, self.last = self.sent + 1, line["step"]
        self.mark.seek(0)
        self.mark.write(f"{self.last:012d}\n")
        self.mark.flush()

    def close(self) -> None:
        """Close the tracker."""
        if self.tracker is not None:
            try:
                self.tracker.close()
            except Exception as problem:
                warnings.warn(f"{self.name} could not be closed ({problem})", stacklevel=2)


@contextmanager
def _sink(run: Path, name: str) -> Iterator[_Sink]:
    path = run / "trackers" / f"{name}.step"
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        mark = open(path, "r+" if path.exists() else "w+", encoding="utf-8", opener=no_link)
    busy = f"another process sends {run} to {name} ({{process}}): wait until it ends"
    with mark, alone(path.with_suffix(".lock"), busy), closing(_Sink(run, name, mark)) as sink:
        yield sink
