"""Files are written aside and renamed, so that a reader (or a killed writer) never leaves half a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loopscale.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    Raises `UserError` when the disk is full or not writable; the old file, if any, is then untouched.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        aside = Path(name)
        os.chmod(aside, 0o644)
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except OSError as cause:
        raise disk_error(path, cause) from cause
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def disk_error(path: Path, cause: OSError) -> UserError:
    """Turn an operating-system error while writing `path` into a sentence with the fix."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk is full while writing {path}: free some space, then run the same command again")
    return UserError(f"cannot write {path} ({cause.strerror}): name another place with --out")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_new_json(path: Path, value: Any) -> bool:
    """Write `value` as `write_json` does unless `path` is there; whether this call wrote it. Of several, one does.

    Where the file system has no hard links, the last one does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
            whole = Path(beside) / path.name
            write_json(whole, value)
            try:
                os.link(whole, path)
            except FileExistsError:
                return False
            except OSError:
                os.replace(whole, path)
            return True
    except OSError as cause:
        raise disk_error(path, cause) from cause


ASIDE_SECONDS = 60.0  # a write takes far less; what is older was left by a writer that was killed


def clear_left_aside(folder: Path) -> None:
    """Remove what killed writers left beside the files of `folder`; younger ones may still be written by another."""
    for left in folder.glob(".*.json.*"):
        with suppress(OSError):  # another process is clearing too
            if time.time() - left.stat().st_mtime > ASIDE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
