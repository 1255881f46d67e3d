"""Who is at a trial: a name for this process, and whether the process of a name is gone."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT, LOST = 10.0, 60.0  # seconds between signs of life, and without one until a process counts as gone


def new_owner() -> str:
    """A name that no other process has: host|process|random."""
    return f"{socket.gethostname()}|{os.getpid()}|{uuid.uuid4().hex[:8]}"


def gone(owner: str) -> bool:
    """Whether this machine knows that another's process has ended; of another machine's it knows nothing.

    Assumption: machines that share a folder have different host names.
    """
    host, _, rest = owner.partition("|")
    process = rest.partition("|")[0]
    if host != socket.gethostname() or not process.isdigit():
        return False
    return int(process) == os.getpid() or not _runs(int(process))


@contextmanager
def beating(sign: Callable[[], None]) -> Iterator[None]:
    """Give a sign of life every `BEAT` seconds while the block runs.

    What `sign` raises is let go: a folder or storage that is away is noticed, and said, by whoever has a result to keep.
    """
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with suppress(Exception):
                sign()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a dead process that nobody has asked after yet still answers to signals
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
