"""Ctrl-C and SIGTERM ask for an orderly end: the step is finished, a checkpoint is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
