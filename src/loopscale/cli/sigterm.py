"""SIGTERM ends a command that has started processes as Ctrl-C does: they end first, and leave nothing behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

SIGTERM = 143


class _Terminated(KeyboardInterrupt):
    pass


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Unwind the block at the first SIGTERM, and leave with exit code 143; a second one kills. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except _Terminated:
        click.echo("loopscale: stopped by SIGTERM, the same command goes on", err=True)
        raise SystemExit(SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Terminated
