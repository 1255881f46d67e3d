"""`loopscale data prepare`: documents -> shards of tokens, in parallel, continued where it was stopped.

The folder is the same byte for byte whatever the number of workers, and whether or not it was interrupted: documents are
taken in order, and a shard holds whole documents. `progress.json` says which shards are done.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from loopscale.data.documents import Source, find_source
from loopscale.data.files import files_in
from loopscale.data.prepared import MANIFEST, SCHEMA, SIDES, file_sha256, is_prepared, read_manifest, text_sha256
from loopscale.data.shard import write_shard
from loopscale.data.split import split_documents
from loopscale.data.tokenizer import BPE_SAMPLE, SEPARATOR, Tokenizer, make_tokenizer, tokenizer_from_json
from loopscale.errors import UserError
from loopscale.files import replacing, write_json, write_text

BATCH = 64  # documents in one piece of work
Report = Callable[[int, int, int], object]  # documents, tokens and shards so far


class Preparation(BaseModel):
    """What decides the prepared folder, byte for byte."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tokenizer: str = "bytes"
    vocab_size: int | None = None
    tokenizer_from: str | None = None
    text_field: str = "text"
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    shard_tokens: int = Field(default=2**27, ge=1)


def prepare_data(
    source: str,
    out: Path,
    settings: Preparation,
    *,
    workers: int | None = None,
    report: Report = lambda documents, tokens, shards: None,
) -> dict[str, Any]:
    """Tokenize `source` (as in `load_data`) into `out` and give the manifest; a whole folder is left as it is.

    workers: threads that tokenize (default: the cores); the tokenizers library works outside of Python's lock.

    Raises `UserError` for what `load_data` refuses, a folder that holds something else, or a preparation that was begun
    with other settings.
    """
    found = find_source(source, identity=_quick_identity)
    name = found.name if ":" in found.name or found.name == "stdlib" else Path(found.name).name
    identity = {"source": name, "identity": found.identity, **settings.model_dump()}
    progress = _begin(out, identity)
    if progress is None:
        return read_manifest(out)
    words = _tokenizer(out, found, settings)
    writer = _Writer(out, words, settings.shard_tokens, progress, report)
    documents = (document for document in found.documents(settings.text_field) if document)
    with ThreadPoolExecutor(workers or _cores()) as pool:
        _run(pool, split_documents(documents, settings.validation_fraction), words, writer, (workers or _cores()) + 2)
    shards = writer.finish()
    for side in SIDES:
        if not shards[side]:
            raise UserError(f"{source} has too little text for a {side} side: give more text")
    manifest = {
        "schema": SCHEMA,
        "source": name,
        "asked": identity,
        "tokenizer": words.name,
        "vocab_size": words.vocab_size,
        "tokenizer_sha256": writer.tokenizer,
        "documents": writer.documents,
        "shards": shards,
    }
    write_json(out / MANIFEST, manifest)
    (out / "progress.json").unlink()
    return manifest


class _Writer:
    """Takes tokenized documents in order and writes shards; those of an earlier start are passed over.

    `done[side]` is the number of the first document that is in no finished shard of that side.
    """

    def __init__(
        self, out: Path, words: Tokenizer, shard_tokens: int, progress: dict[str, Any], report: Report
    ) -> None:
        self.out, self.report, self.shard_tokens = out, report, shard_tokens
        self.tokenizer = text_sha256(words.to_json())
        self.dtype: np.dtype[Any] = np.dtype("<u2" if words.vocab_size <= 2**16 else "<u4")
        self.progress = progress
        self.waiting: dict[str, list[NDArray[Any]]] = {side: [] for side in SIDES}
        self.counts = dict.fromkeys(SIDES, 0)
        self.documents = 0

    def needs(self, number: int, side: str) -> bool:
        """Whether a document still has to be tokenized."""
        return number >= int(self.progress["done"][side])

    def add(self, side: str, tokens: NDArray[Any] | None) -> None:
        """Take the next document; None for one that is in a finished shard."""
        self.documents += 1
        if tokens is not None:
            self.waiting[side].append(tokens.astype(self.dtype))
            self.counts[side] += len(tokens)
            if self.counts[side] >= self.shard_tokens:
                self._write(side)
        if self.documents % BATCH == 0:
            self._tell()

    def finish(self) -> dict[str, list[dict[str, Any]]]:
        """Write what is left and give the rows of the manifest."""
        for side in SIDES:
            if self.counts[side]:
                self._write(side)
        self._tell()
        return {side: list(self.progress["shards"][side]) for side in SIDES}

    def _tell(self) -> None:
        rows = [row for side in SIDES for row in self.progress["shards"][side]]
        self.report(self.documents, sum(row["tokens"] for row in rows) + sum(self.counts.values()), len(rows))

    def _write(self, side: str) -> None:
        rows = self.progress["shards"][side]
        name = f"{side}-{len(rows):05d}.safetensors"
        with replacing(self.out / name) as aside:
            tokens = write_shard(aside, self.waiting[side], self.dtype, self.tokenizer)
        rows.append({"file": name, "tokens": tokens, "sha256": file_sha256(self.out / name)})
        self.progress["done"][side] = self.documents
        write_json(self.out / "progress.json", self.progress)
        self.waiting[side], self.counts[side] = [], 0


def _run(
    pool: ThreadPoolExecutor, parts: Iterator[tuple[str, str]], words: Tokenizer, writer: _Writer, ahead: int
) -> None:
    """Tokenize batches of documents side by side and write them in their order, at most `ahead` batches early."""
    running: deque[tuple[list[str], Future[list[NDArray[Any] | None]]]] = deque()
    number = 0

    def write_first() -> None:
        sides, future = running.popleft()
        for side, tokens in zip(sides, future.result(), strict=True):
            writer.add(side, tokens)

    while batch := list(islice(parts, BATCH)):
        wanted = [text if writer.needs(number + k, side) else None for k, (side, text) in enumerate(batch)]
        running.append(([side for side, _ in batch], pool.submit(_tokens, words, wanted)))
        number += len(batch)
        if len(running) >= ahead:
            write_first()
    while running:
        write_first()


def _tokens(words: Tokenizer, texts: list[str | None]) -> list[NDArray[Any] | None]:
    separator = np.array([SEPARATOR])
    return [None if text is None else np.concatenate([words.encode(text), separator]) for text in texts]


def _begin(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The progress to continue from; None when the folder is whole. Raises `UserError` when it is another's."""
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        differing = [key for key, value in identity.items() if manifest["asked"].get(key) != value]
        if differing:
            raise UserError(f"{out} was prepared with another {differing[0]}: name another folder with --out")
        return None
    if is_prepared(out):
        progress = _read_progress(out)
        differing = [key for key, value in identity.items() if progress["identity"].get(key) != value]
        if differing:
            raise UserError(
                f"the preparation of {out} was begun with another {differing[0]}: name another folder with --out"
            )
        return progress
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is no empty folder: name another folder with --out")
    fresh = {"identity": identity, "done": dict.fromkeys(SIDES, 0), "shards": {side: [] for side in SIDES}}
    write_json(out / "progress.json", fresh)
    return fresh


def _read_progress(out: Path) -> dict[str, Any]:
    try:
        progress: dict[str, Any] = json.loads((out / "progress.json").read_text(encoding="utf-8"))
        _ = [progress["identity"], *(progress[key][side] for key in ("done", "shards") for side in SIDES)]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out / 'progress.json'} is damaged: prepare the data into another folder") from None
    return progress


def _tokenizer(out: Path, source: Source, settings: Preparation) -> Tokenizer:
    """The tokenizer that was begun with, one given as a file, or a new one made from the first documents."""
    file = out / "tokenizer.json"
    if file.is_file():
        return tokenizer_from_json(file.read_text(encoding="utf-8"))
    if settings.tokenizer_from is not None:
        given = Path(settings.tokenizer_from)
        given = given / "tokenizer.json" if given.is_dir() else given
        try:
            words = tokenizer_from_json(given.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise UserError(f"cannot read the tokenizer {given}: name a tokenizer.json of a run or folder") from None
    else:
        sample = islice(source.documents(settings.text_field), BPE_SAMPLE)
        words = make_tokenizer(settings.tokenizer, settings.vocab_size, sample)
    write_text(file, words.to_json())
    return words


def _quick_identity(place: Path) -> str:
    """Names, sizes and times of change: hashing terabytes before the first shard would take hours."""
    rows = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files_in(place)]
    return text_sha256("\n".join(rows))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
