"""Where text comes from: the embedded default, synthetic tasks, this disk, Hugging Face data sets."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loopscale.data.files import content_hash, field_of, local_documents
from loopscale.data.synthetic import synthetic_documents
from loopscale.errors import UserError, first_line, nearest, require

_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}


@dataclass(frozen=True)
class Source:
    """Named text: `identity` changes whenever the text would, `name` is what provenance records."""

    name: str
    identity: str

    @property
    def shown(self) -> str:
        """Name it for provenance: of a local file the name, not the path to it."""
        return self.name if self.name.startswith(("stdlib", "synthetic:", "hf:")) else Path(self.name).name

    def documents(self, text_field: str) -> Iterator[str]:
        """Yield the documents in a fixed order, without zero characters: they are the separator of `bytes`.

        Raises `UserError` for text that cannot be read.
        """
        return (document.replace("\0", "") for document in self._raw(text_field))

    def _raw(self, text_field: str) -> Iterator[str]:
        if self.name == "stdlib":
            return _standard_library()
        if self.name.startswith("synthetic:"):
            return synthetic_documents(self.name.removeprefix("synthetic:"))
        if self.name.startswith("hf:"):
            return _hugging_face(self.name.removeprefix("hf:"), text_field)
        return local_documents(Path(self.name), text_field)


def find_source(path: str | Path, identity: Callable[[Path], str] = content_hash) -> Source:
    """Name the source: "stdlib", "synthetic:TASK", "hf:NAME[:SPLIT]", or a file or folder, hashed by `identity`.

    Raises `UserError` for an empty name, and when there is no such file, with the nearest name beside it.
    """
    name = str(path)
    if name == "stdlib":
        return Source(name, f"stdlib {platform.python_implementation()} {platform.python_version()}")
    if name.startswith("hf:") and not name.removeprefix("hf:").partition(":")[0].strip():
        raise UserError(f"{name!r} names no Hugging Face data set: write hf:NAME or hf:NAME:SPLIT")
    if name.startswith(("synthetic:", "hf:")):
        return Source(name, name)
    if not name.strip():
        raise UserError("the data source is an empty name: set data.path to a file, a folder or 'stdlib'")
    place = Path(name).expanduser()
    if not place.exists():
        beside = [entry.name for entry in place.parent.iterdir()][:200] if place.parent.is_dir() else []
        hint = nearest(place.name, [*beside, "stdlib"]).split("known:")[0].strip()
        raise UserError(f"there is no data file or folder {name!r}: {hint or 'check data.path'}")
    if not (place.is_file() or place.is_dir()):
        raise UserError(f"{name!r} is a device or a pipe, which may have no end: save its text in a file and name that")
    return Source(str(place.resolve()), identity(place))


def _standard_library() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            if name.endswith(".py"):
                text = Path(folder, name).read_text(encoding="utf-8", errors="ignore").replace("\0", "")
                if text.strip():
                    yield text


def _hugging_face(name: str, text_field: str) -> Iterator[str]:
    datasets = require("datasets", "datasets")
    repository, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, split=split or "train", streaming=True)
        yield from (field_of(row, text_field, f"a row of {name}") for row in rows)
    except UserError:
        raise
    except Exception as problem:  # not found, offline, gated: the library's own words are the best
        raise UserError(f"cannot read the Hugging Face data set {name!r}: {first_line(problem)}") from None
