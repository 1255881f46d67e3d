"""The lock of a journal file: the kernel's, which ends with the process that held it, however that died."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loopscale.study.lock import UNSUPPORTED, KernelLock


def journal_lock(journal: Any, path: Path) -> Any:
    """The kernel's lock, or where there is none (Windows, some cluster file systems) Optuna's by symbolic link.

    Optuna's own locks are files: a process killed while it holds one stops all others for half a minute, or, where the
    path is relative, for ever.
    """
    lock = KernelLock(path.with_name(path.name + ".flock"))
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
