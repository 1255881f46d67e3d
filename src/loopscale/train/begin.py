"""How a run begins and how it is continued, on all ranks alike; the loop that then trains it is in `loop`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from loopscale.files import write_text
from loopscale.train import checkpoint, precision
from loopscale.train.config import TrainConfig
from loopscale.train.run import (
    Run,
    Warn,
    begin_with,
    check_source,
    check_tied_entry,
    cut_metrics,
    exclusive,
    note_resumption,
)
from loopscale.train.training import Training, make_task, spread
from loopscale.train.world import World


class Interrupt:
    """`signal` is the number of the signal that arrived, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def arrived(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first is noted, a second Ctrl-C ends at once."""
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def signal_name(number: int) -> str:
    """Say what the person, or the scheduler, did."""
    return "Ctrl-C" if number == signal.SIGINT else "SIGTERM"


@contextmanager
def orderly() -> Iterator[Interrupt]:
    """Note SIGINT and SIGTERM instead of dying of them; handlers are put back at the end. Main thread only."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    old = {number: signal.signal(number, interrupt.arrived) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def begun(config: TrainConfig, world: World, warn: Warn, new: bool) -> Training:
    """Build the training of a run: tried once, in the precision that is faster; a new one with the weights it asks for."""
    task = make_task(config, world=world)
    with world.together():
        for sentence in task.check(None):
            warn(sentence)
        if new and config.train.init_from is not None:
            begin_with(Path(config.train.init_from), task.model, warn)
        task = precision.settled(task)
        slow = precision.slower(task)
        if slow is not None:
            warn(slow)
    chosen = world.of_main(task.config.train.precision)
    return spread(precision.fixed(task, chosen), world)


def continue_from(run: Run, training: Training, warn: Warn) -> None:
    """Put the newest whole checkpoint into the training, and the folder into the state that fits it."""
    world, newest = training.world, None
    with world.together():
        if world.main:
            check_source(run, training.task.origin.get("model", {}))
            check_tied_entry(run, warn)
            newest = run.newest_whole(warn)
    name = world.of_main("" if newest is None else newest.name)
    if not name:
        warn("the run has no checkpoint yet: it starts from step 1")
    else:
        for change in checkpoint.changes(run.checkpoints / name, training):
            warn(f"{change}: from this step on the run no longer reproduces the original")
        checkpoint.load(run.checkpoints / name, training)
    with world.together():
        if world.main:
            checkpoint.check_room(run.path, training)
            write_text(run.path / "config.toml", run.config.to_toml())
            note_resumption(run, training, warn)
            cut_metrics(run, training.done)
            checkpoint.drop_old(run.checkpoints, training.done, training.config.train.keep)


@contextmanager
def alone(run: Run, world: World) -> Iterator[None]:
    """Keep a second training out of the folder; rank 0 holds the lock for all."""
    with ExitStack() as held:
        with world.together():
            if world.main:
                held.enter_context(exclusive(run))
        yield


def shown(config: TrainConfig) -> dict[str, str]:
    """Give the values of a config as texts, for ranks to compare."""
    return {key: str(value) for key, value in config.flat().items()}
