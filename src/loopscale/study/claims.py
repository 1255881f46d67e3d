"""Who is at which trial of a study folder that several processes, or machines, work on: a file a trial in `claims/`.

A claim is held while its process gives signs of life, by touching the file. It is taken over when that process is known to
be gone (on its own machine: at once) or was silent for a minute. A finished trial is never given out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopscale.files import disk_error
from loopscale.study.lock import locked
from loopscale.study.owner import LOST, beating, gone, new_owner


class Claims:
    """The claims of this process on the trials of the study in `folder`, which holds a `study.json`."""

    def __init__(self, folder: Path) -> None:
        self.owner = new_owner()
        self._study, self._folder, self._trials = folder / "study.json", folder / "claims", folder / "trials"
        self._held = set[str]()

    def take(self, key: str) -> bool:
        """Claim a trial; False when another is at it, or it is finished.

        Raises `UserError` when the folder cannot be written.
        """
        path = self._folder / f"{key}.json"
        try:
            with locked(self._study):
                self._folder.mkdir(exist_ok=True)
                if self._is_held(path) or (self._trials / path.name).exists():
                    return False
                path.unlink(missing_ok=True)
                with path.open("x", encoding="utf-8") as file:
                    host, process, _ = self.owner.split("|")
                    file.write(
                        json.dumps({"owner": self.owner, "host": host, "pid": int(process), "time": time.time()})
                    )
        except FileExistsError:  # where there are no locks: another was faster
            return False
        except OSError as cause:
            raise disk_error(path, cause) from cause
        self._held.add(key)
        return True

    def release(self, key: str) -> None:
        """Give a claim back, after the trial's record was kept or when it is not to be run."""
        self._held.discard(key)
        path = self._folder / f"{key}.json"
        with suppress(OSError), locked(self._study):
            if _owner(path) == self.owner:
                path.unlink()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the block runs; afterwards give back what is still claimed."""
        try:
            with beating(self._touch):
                yield
        finally:
            for key in tuple(self._held):
                self.release(key)
            with suppress(OSError):  # others have claims there
                self._folder.rmdir()

    def _touch(self) -> None:
        for key in tuple(self._held):
            with suppress(OSError):
                os.utime(self._folder / f"{key}.json")

    def _is_held(self, path: Path) -> bool:
        owner = _owner(path)
        if owner == self.owner:
            return True
        if owner is not None and gone(owner):
            return False
        try:
            os.utime(self._folder)  # "now" on the clock that dates the claims: the folder may be another machine's
            return self._folder.stat().st_mtime - path.stat().st_mtime < LOST
        except FileNotFoundError:
            return False


def _owner(path: Path) -> str | None:
    """Whose claim it is; None for one that is not there, or not yet written."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
