"""Text on this disk: which files a name stands for, and the documents in text, JSONL and parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, nearest, require
from loopscale.files import machine_memory


def files_in(place: Path) -> list[Path]:
    """List the file itself, or all files of a folder, sorted; what begins with a dot, at any depth, is left out."""
    if place.is_file():
        return [place]
    found = (file for file in place.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(place).parts))


def content_hash(place: Path) -> str:
    """Hash the names and contents of the files: a changed text is another source, a touched file is not.

    Raises `UserError` when a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files_in(place):
        name = "" if file == place else file.relative_to(place).as_posix()
        try:
            with file.open("rb") as opened:
                inside = hashlib.file_digest(opened, "sha256").digest()
        except OSError as cause:
            raise UserError(f"cannot read {file} ({cause.strerror}): check its permissions") from cause
        digest.update(name.encode("utf-8", errors="surrogateescape") + b"\0" + inside)
    return digest.hexdigest()


def local_documents(place: Path, text_field: str) -> Iterator[str]:
    """Yield the documents of a file, or of all files of a folder that hold text.

    A folder may hold pictures, empty files and other encodings: they are passed over.
    Raises `UserError` for a file that is no text, a folder without text, a row without the text field.
    """
    if place.is_file():
        yield from _rows(place, text_field) if _has_rows(place) else [_text(place)]
        return
    found = False
    for file in files_in(place):
        if _has_rows(file):
            found = True
            yield from _rows(file, text_field)
        elif (document := _text_or_none(file)) is not None:
            found = True
            yield document
    if not found:
        raise UserError(f"the folder {place} holds no text file: name one that does in data.path")


def field_of(row: Any, text_field: str, where: str) -> str:
    """Give the text of a row. Raises `UserError` that names the fields there are."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object with fields: write one like {{{text_field!r}: '...'}} a line")
    value = row.get(text_field)
    if not isinstance(value, str):
        raise UserError(
            f"{where} has no text in field {text_field!r}: set data.text_field ({nearest(text_field, map(str, row))})"
        )
    return value


def _has_rows(file: Path) -> bool:
    return file.suffix in (".jsonl", ".parquet")


def _rows(file: Path, text_field: str) -> Iterator[str]:
    return _jsonl(file, text_field) if file.suffix == ".jsonl" else _parquet(file, text_field)


def _text_or_none(file: Path) -> str | None:
    try:
        return _text(file)
    except UserError:
        return None


def _text(file: Path) -> str:
    limit = machine_memory()
    if limit is not None and 4 * file.stat().st_size > limit:
        raise UserError(f"{file} is one document larger than memory: split it into files, or JSONL")
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
    found = False
    with file.open("rb") as lines:  # bytes split at \n alone; str.splitlines would cut at U+2028 inside a string
        for number, line in enumerate(lines, start=1):
            if line.strip():
                found = True
                where = f"line {number} of {file}"
                yield field_of(_json(line, where), text_field, where)
    if not found:
        raise UserError(f"{file} is empty: give a file with text")


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text: convert it to UTF-8 first") from None
    except json.JSONDecodeError as problem:
        raise UserError(f"{where} is not JSON ({problem.msg}): mend or remove it") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply for JSON: mend or remove it") from None


def _parquet(file: Path, text_field: str) -> Iterator[str]:
    parquet = require("pyarrow.parquet", "datasets")
    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        names = schema.names
        if text_field not in names:
            raise UserError(f"{file} has no column {text_field!r}: set data.text_field ({nearest(text_field, names)})")
        kind = str(schema.field(text_field).type)
        if kind not in ("string", "large_string", "string_view"):
            raise UserError(f"column {text_field!r} of {file} holds {kind}, not text: set data.text_field")
        for batch in table.iter_batches(columns=[text_field]):
            yield from (value for value in batch.column(0).to_pylist() if value)
    except UserError:
        raise
    except Exception as problem:  # pyarrow has many errors, all of them about the file
        reason = str(problem).split(". ")[0].strip() or type(problem).__name__
        raise UserError(f"{file} is not a whole parquet file ({reason}): write or download it again") from None
