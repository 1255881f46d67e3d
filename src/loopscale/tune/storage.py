"""Where the trials of a tuning are shared: an Optuna journal file, or a database by URL; opened, repaired, lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, require
from loopscale.tune.lock import journal_lock


def open_storage(where: str | None, folder: Path) -> Any:
    """The journal file in the folder, another journal file, or a database ("postgresql://user@host/name").

    Raises `UserError` when it cannot be reached, and `MissingExtraError` without optuna.
    """
    optuna = require("optuna", "sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if where is not None and "://" in where:
        return _database(optuna, where)
    path = folder / "journal.log" if where is None else Path(where)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_other(path)
        lock = journal_lock(optuna.storages.journal, path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        _mend(lock, path)
        return optuna.storages.JournalStorage(backend)
    except OSError as cause:
        raise UserError(f"cannot use the storage {path} ({cause.strerror}): name another with --storage") from None


def _refuse_other(path: Path) -> None:
    """Raise `UserError` for a file that does not begin as a journal does, before a lock is put beside it."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        line = file.readline()
        if line and (not line.startswith(b"{") or (line.endswith(b"\n") and not _entry(line))):
            raise _no_journal(path, 1)


def _mend(lock: Any, path: Path) -> None:
    """Cut off a last line that a killed process left unfinished; the lock says that nobody is writing it now.

    Raises `UserError` for a line that is no entry of a journal.
    """
    lock.acquire()
    try:
        whole = 0
        with path.open("r+b") as file:
            for number, line in enumerate(file, start=1):
                if not _entry(line):
                    if number == 1 or line.endswith(b"\n"):
                        raise _no_journal(path, number)
                    break
                whole += len(line)
            file.truncate(whole)
    finally:
        lock.release()


def _entry(line: bytes) -> bool:
    try:
        return "op_code" in json.loads(line) and line.endswith(b"\n")
    except (ValueError, TypeError):
        return False


def _no_journal(path: Path, line: int) -> UserError:
    what = "is not an Optuna journal" if line == 1 else f"is not an Optuna journal from line {line} on"
    return UserError(f"{path} {what}: name another file with --storage, or a new folder")


def _database(optuna: Any, url: str) -> Any:
    if url.startswith("sqlite"):
        raise UserError("SQLite breaks under concurrent starts: leave --storage out, or name a PostgreSQL server")
    scheme, _, rest = url.partition("://")
    driver = "postgresql+psycopg" if scheme in ("postgresql", "postgres") else scheme
    for again in (True, True, False):
        try:
            return optuna.storages.RDBStorage(f"{driver}://{rest}", engine_kwargs={"pool_pre_ping": True})
        except Exception as cause:
            tables = type(cause).__name__ in ("IntegrityError", "ProgrammingError")
            if not (again and tables):  # else two processes made the tables of an empty database at the same moment
                raise _refused(_shown(url), cause, tables) from None


def _refused(shown: str, cause: Exception, tables: bool) -> UserError:
    if isinstance(cause, ImportError):
        return UserError(f"the storage {shown} needs a driver: for PostgreSQL, pip install 'loopscale[postgres]'")
    if tables:
        return UserError(f"the database {shown} holds tables of something else ({_reason(cause)}): name an empty one")
    return UserError(
        f"cannot reach the storage {shown} ({_reason(cause)}): start the server, name another such as "
        "postgresql://user@host/name, or leave --storage out"
    )


def _shown(url: str) -> str:
    """The address without user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _reason(cause: BaseException) -> str:
    said = str(getattr(cause, "orig", None) or cause).strip()
    return said.splitlines()[0][:160] if said else type(cause).__name__


@contextmanager
def kept(where: str | None, folder: Path) -> Iterator[None]:
    """Say in one sentence when the storage is lost while trials run; what ended is kept in the folder and there."""
    optuna, database = require("optuna", "sweep"), require("sqlalchemy.exc", "sweep")
    try:
        yield
    except (optuna.exceptions.StorageInternalError, database.SQLAlchemyError) as cause:
        shown = _shown(where) if where else str(folder / "journal.log")
        raise UserError(
            f"the storage {shown} was lost ({_reason(cause.__cause__ or cause)}): the same command goes on when it is "
            "back, trials that ended are kept"
        ) from None
