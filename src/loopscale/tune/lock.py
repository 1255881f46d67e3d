"""The lock of a journal file: the kernel's, which ends with the process that held it, however that died."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class KernelLock:
    """A journal's lock as Optuna wants it, by `flock` on a file beside it; across machines where the file system does that.

    Optuna's own locks are files: a process killed while it holds one stops all others for half a minute, or, where the
    path is relative, for ever.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".flock")
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


def journal_lock(journal: Any, path: Path) -> Any:
    """The kernel's lock, or where there is none (Windows, some cluster file systems) Optuna's by symbolic link."""
    lock = KernelLock(path)
    try:
        lock.acquire()
    except ImportError:
        return journal.JournalFileSymlinkLock(str(path.absolute()))
    except OSError as cause:
        if cause.errno in UNSUPPORTED:
            return journal.JournalFileSymlinkLock(str(path.absolute()))
        raise
    lock.release()
    return lock
