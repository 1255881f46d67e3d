"""A lock of the kernel's on a file: it ends with the process that held it, however that died."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class KernelLock:
    """`flock` on the file at `path`, which is made when it is not there; across machines where the file system does that.

    Raises `ImportError` (Windows) or `OSError` with an error number in `UNSUPPORTED` where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        import fcntl

        held = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except BaseException:
            os.close(held)
            raise
        self._held = held
        return True

    def release(self) -> None:
        """Give the lock back."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file inside; nothing is held where there are no locks."""
    lock = KernelLock(path)
    try:
        lock.acquire()
    except ImportError:
        pass
    except OSError as cause:
        if cause.errno not in UNSUPPORTED:
            raise
    try:
        yield
    finally:
        lock.release()
