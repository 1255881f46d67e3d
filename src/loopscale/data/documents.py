"""Where text comes from: the embedded default, synthetic tasks, files on this disk, Hugging Face data sets."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from loopscale.data.synthetic import synthetic_documents
from loopscale.data.tokenizer import BPE_SAMPLE, Tokenizer, make_tokenizer
from loopscale.errors import UserError, first_line, nearest, require
from loopscale.files import machine_memory


def files_in(place: Path) -> list[Path]:
    """List the file itself, or all files of a folder, sorted; what begins with a dot, at any depth, is left out."""
    if place.is_file():
        return [place]
    found = (file for file in place.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(place).parts))


def content_hash(place: Path) -> str:
    """Hash names and contents of the files, not their times; raises `UserError` when one cannot be read."""
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
    Raises `UserError` for a file that is not text, a folder without text, a row without the text field.
    """
    found = False
    for file in files_in(place):
        try:
            documents = _documents(file, text_field)
        except UserError:
            if file == place:
                raise
        else:
            found = True
            yield from documents
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


def _documents(file: Path, text_field: str) -> Iterable[str]:
    """Open the rows of a file, or read it as one text; only the second may raise at once."""
    readers = {".jsonl": _jsonl, ".parquet": _parquet}
    return readers[file.suffix](file, text_field) if file.suffix in readers else [_text(file)]


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
        """Yield the documents in order, without zero characters; raises `UserError` for text that cannot be read."""
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


@dataclass(frozen=True)
class Reading:
    """What decides the tokens of a source; `load_data` takes each as a keyword.

    max_tokens: read no more than this; the last document is shortened to fit. text_field: of JSONL, parquet and data sets.

    Raises `UserError` for values out of range.
    """

    tokenizer: str = "bytes"
    vocab_size: int | None = None
    validation_fraction: float = 0.05
    max_tokens: int | None = None
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction!r}")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UserError(
                f"max_tokens must be at least 2, got {self.max_tokens!r}: leave it out to read all of the text"
            )

    def make_tokenizer(self, source: Source) -> Tokenizer:
        """Make the tokenizer, from the first documents where it has to be trained."""
        sample = islice(source.documents(self.text_field), BPE_SAMPLE)
        return make_tokenizer(self.tokenizer, self.vocab_size, sample)
