"""Files are written aside and renamed, so that a reader (or a killed writer) never leaves half a file."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from loopscale.errors import UserError

LOCK = ".lock"  # in a folder that one process at a time may write


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    What killed processes left of earlier tries at the same file is removed.

    Raises `UserError` when the disk is full or not writable; the old file, if any, is then untouched.
    """
    with writing(path), ExitStack() as ends:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}"):  # as mkstemp names them
            if _free(left):
                with suppress(OSError):
                    left.unlink()
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        aside = Path(name)
        ends.callback(aside.unlink, missing_ok=True)
        ends.callback(os.close, handle)
        _locked(handle)
        aside.touch(0o644)  # between the two calls it looked like one of a dead process
        os.chmod(aside, 0o644)
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)


@contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock on the file at `path`, which is made and stays; the kernel frees it when its holder dies.

    Nothing is held where the system or the file system has no such locks. `busy` may name the holder by {process}.

    Raises `UserError`, with `busy`, while another process holds it.
    """
    with writing(path):
        while True:
            handle = open(path, "a+", encoding="utf-8", opener=no_link)
            try:
                _take(handle, busy)
            except UserError:
                handle.close()
                raise
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                break
            handle.close()  # its folder was removed meanwhile
    with handle:
        yield


def held(path: Path) -> bool:
    """Tell whether a process holds the lock on the file at `path`; False where the system has no such locks."""
    with suppress(OSError), open(path, encoding="utf-8") as handle:
        return _locked(handle, shared=True) is False
    return False


def no_link(path: str, flags: int) -> int:
    """Open a file that is written in place, but no link: a folder of a stranger's may hold one to a file of the user's."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _take(handle: TextIO, busy: str) -> None:
    locked = _locked(handle)
    if locked is False:
        handle.seek(0)
        raise UserError(busy.replace("{process}", f"process {handle.read(100).strip() or 'unknown'}"))
    if locked:
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}\n")
        handle.flush()


def _locked(handle: TextIO | int, shared: bool = False) -> bool | None:
    """Lock a file while it is open: False where another holds it, None where system or file system has no such locks."""
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _free(aside: Path) -> bool:
    """Say whether whoever held a file or folder aside has ended: its lock is free."""
    with suppress(OSError):
        handle = os.open(aside, os.O_RDONLY)
        try:
            return _locked(handle) is True
        finally:
            os.close(handle)
    return False


def machine_memory() -> float | None:
    """Return the bytes of memory of this machine, or of its container; None where the system does not tell."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")]
    except (OSError, ValueError, IndexError):
        pass
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float(Path(limit).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # absent, or "max"
            pass
    return min(found, default=None)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_folder(folder: Path, fix: str) -> None:
    """Raise `UserError`, with the fix, where `folder` is not one."""
    if not folder.is_dir():
        found = f"{folder} is a file, no folder" if folder.exists() else f"there is no folder {folder}"
        raise UserError(f"{found}: {fix}")


def file_sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bounded(path: Path, most: int = 2**26) -> str:
    """Read a text file of at most `most` bytes: a device or a pipe may have no end.

    Raises `UserError` for a longer one, `OSError` and `UnicodeDecodeError` as `Path.read_text` does.
    """
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise UserError(f"{path} has more than {most / 2**20:.0f} MB: name the file that was meant")
    return raw.decode("utf-8")


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make `path` for the block; when the block fails, the folders made here that are still empty are taken away.

    Raises `UserError` when it cannot be made.
    """
    made = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    try:
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path` that takes its place, an empty one's at most, when the block is done.

    What killed processes left of earlier tries is removed. Raises `UserError` when the disk refuses, also where a library
    says so in its own words; nothing is left behind then.
    """
    for left in path.parent.glob(f".{glob.escape(path.name[:200])}.{'[a-f0-9]' * 8}"):
        if left.is_dir() and _free(left):
            shutil.rmtree(left, ignore_errors=True)
    aside = path.parent / f".{path.name[:200]}.{secrets.token_hex(4)}"
    try:
        with new_folder(path.parent), ExitStack() as ends:
            ends.callback(shutil.rmtree, aside, ignore_errors=True)
            aside.mkdir()
            handle = os.open(aside, os.O_RDONLY)
            ends.callback(os.close, handle)
            _locked(handle)
            yield aside
            if path.exists():
                path.rmdir()
            os.rename(aside, path)
    except Exception as cause:
        refused = cause if isinstance(cause, OSError) else system_error(cause)
        if refused is None:
            raise
        raise disk_error(path, refused) from cause


def system_error(cause: Exception) -> OSError | None:
    """Read the system's number out of the text of a library written in Rust ("... (os error 28)"); None without one.

    >>> system_error(RuntimeError("I/O error: No space left on device (os error 28)")).errno
    28
    """
    number = str(cause).rpartition("(os error ")[2].partition(")")[0]
    return OSError(int(number), os.strerror(int(number))) if number.isdecimal() else None


def disk_error(path: Path, cause: OSError) -> UserError:
    """Turn an operating-system error while writing `path` into a sentence with the fix."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk is full while writing {path}: free some space, then run the same command again")
    if cause.errno == errno.ELOOP:
        return UserError(f"{path} is a link to another place, which is not written: put the file itself there")
    if cause.errno == errno.ENAMETOOLONG:
        return UserError(f"cannot write {path} (a name in it has more than 255 bytes): name a shorter one with --out")
    return UserError(f"cannot write {path} ({cause.strerror or cause}): name another place with --out")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise as `disk_error` what the system refuses inside."""
    try:
        yield
    except OSError as cause:
        raise disk_error(path, cause) from cause


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
