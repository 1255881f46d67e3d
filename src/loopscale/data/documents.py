"""Where text comes from: the embedded default, files, folders, JSONL, parquet, Hugging Face data sets."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopscale.data.synthetic import synthetic_documents
from loopscale.errors import UserError, nearest, require

_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}


@dataclass(frozen=True)
class Source:
    """Named text: `identity` changes whenever the text would, `name` is what provenance records."""

    name: str
    identity: str

    def documents(self, text_field: str) -> Iterator[str]:
        """Yield the documents in a fixed order; raises `UserError` for text that cannot be read."""
        if self.name == "stdlib":
            return _standard_library()
        if self.name.startswith("synthetic:"):
            return synthetic_documents(self.name.removeprefix("synthetic:"))
        if self.name.startswith("hf:"):
            return _hugging_face(self.name.removeprefix("hf:"), text_field)
        return _local(Path(self.name), text_field)


def find_source(path: str | Path) -> Source:
    """Name the source without reading it: "stdlib", "synthetic:TASK", "hf:NAME[:SPLIT]", or a file or folder.

    Raises `UserError` when there is no such file, with the nearest name beside it.
    """
    name = str(path)
    if name == "stdlib":
        return Source(name, f"stdlib {platform.python_implementation()} {platform.python_version()}")
    if name.startswith(("synthetic:", "hf:")):
        return Source(name, name)
    place = Path(name).expanduser()
    if not place.exists():
        beside = [entry.name for entry in place.parent.iterdir()][:200] if place.parent.is_dir() else []
        hint = nearest(place.name, beside).split("known:")[0].strip() if beside else ""
        raise UserError(f"there is no data file or folder {name!r}" + (f": {hint}" if hint else ": check data.path"))
    stamps = [f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in _files(place)]
    return Source(str(place.resolve()), hashlib.sha256("\n".join(stamps).encode()).hexdigest())


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))


def _standard_library() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            if name.endswith(".py"):
                text = Path(folder, name).read_text(encoding="utf-8", errors="ignore").replace("\0", "")
                if text.strip():
                    yield text


def _local(place: Path, text_field: str) -> Iterator[str]:
    if place.is_file():
        yield from _read_file(place, text_field)
        return
    found = False
    for file in _files(place):
        if b"\0" not in file.open("rb").read(8192):  # a folder may hold pictures: they are passed over
            found = True
            yield from _read_file(file, text_field)
    if not found:
        raise UserError(f"the folder {place} holds no text file: name one that does in data.path")


def _read_file(file: Path, text_field: str) -> Iterator[str]:
    if file.suffix == ".jsonl":
        yield from _jsonl(file, text_field)
    elif file.suffix == ".parquet":
        yield from _parquet(file, text_field)
    else:
        yield _text(file)


def _text(file: Path) -> str:
    raw = file.read_bytes()
    if not raw.strip():
        raise UserError(f"{file} is empty: give a file with text")
    at = raw.find(b"\0")
    if at >= 0:
        raise UserError(f"{file} is binary (a zero byte at offset {at}): give text in UTF-8, JSONL or parquet")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise UserError(f"{file} is not UTF-8 text (byte {problem.start}): convert it to UTF-8 first") from None


def _jsonl(file: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as problem:
                raise UserError(f"line {number} of {file} is not JSON ({problem.msg}): mend or remove it") from None
            yield _field(row, text_field, f"line {number} of {file}")


def _field(row: Any, text_field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        fields = sorted(row) if isinstance(row, dict) else []
        raise UserError(
            f"{where} has no text in field {text_field!r}: set data.text_field ({nearest(text_field, fields)})"
        )
    return str(row[text_field])


def _parquet(file: Path, text_field: str) -> Iterator[str]:
    parquet = require("pyarrow.parquet", "datasets")
    try:
        table = parquet.ParquetFile(file)
    except Exception as problem:  # pyarrow has many errors, all of them about the file
        raise UserError(f"{file} is not a parquet file: {str(problem).splitlines()[0]}") from None
    names = table.schema_arrow.names
    if text_field not in names:
        raise UserError(f"{file} has no column {text_field!r}: set data.text_field ({nearest(text_field, names)})")
    for batch in table.iter_batches(columns=[text_field]):
        yield from (str(value) for value in batch.column(0).to_pylist() if value)


def _hugging_face(name: str, text_field: str) -> Iterator[str]:
    datasets = require("datasets", "datasets")
    repository, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, split=split or "train", streaming=True)
        yield from (_field(row, text_field, f"a row of {name}") for row in rows)
    except UserError:
        raise
    except Exception as problem:  # not found, offline, gated: the library's own words are the best
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(f"cannot read the Hugging Face data set {name!r}: {reason}") from None
