"""From a source's name to a data set, packing it into the cache the first time."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopscale.data.dataset import Dataset
from loopscale.data.documents import Reading, Source, find_source
from loopscale.data.prepare import WORDS, Writer
from loopscale.data.prepared import MANIFEST, is_prepared, open_folder, open_prepared
from loopscale.data.split import split_source
from loopscale.data.stream import open_stream
from loopscale.errors import UserError, settings
from loopscale.files import folder_aside, write_text
from loopscale.records import Manifest, content_hash, write_record

VERSION = 3  # of the packed tokens


def cache_folder() -> Path:
    """Say where packed tokens lie: $LOOPSCALE_CACHE, or ~/.cache/loopscale."""
    return Path(os.environ.get("LOOPSCALE_CACHE") or Path.home() / ".cache" / "loopscale")


def load_data(
    source: str | Path = "stdlib",
    *,
    context: int = 64,
    cache_dir: Path | None = None,
    **keywords: Any,
) -> Dataset:
    """Open a source as batches of tokens, packed once into memory-mapped files.

    source: "stdlib" (the sources of the running Python's standard library), "synthetic:copy|addition|permutation", a
    text file, folder, .jsonl or .parquet, or "hf:NAME[:SPLIT]" (only then is anything downloaded); a folder made by
    `loopscale data prepare`; or "stream:SOURCE", which reads any of the first while training, in order, packing nothing.
    context: the longest sequence that will be asked for; both sides must hold one. Further keywords are those of
    `Reading`: tokenizer, vocab_size, validation_fraction, max_tokens, text_field.

    Raises `UserError`: no such source, empty, binary or too short text, unknown tokenizer or field, a missing extra,
    a cache folder that cannot be written.

    >>> load_data("synthetic:copy").batch(step=0, seed=0, batch_size=2, context=16)[0].shape
    (2, 16)
    """
    reading = settings(Reading, keywords, load_data)
    if (name := str(source)).startswith("stream:"):
        return open_stream(name.removeprefix("stream:"), reading)
    if is_prepared(place := Path(name).expanduser()):
        dataset = open_prepared(place, reading)
        dataset.check(context)
        return dataset
    found = find_source(source)
    identity = {"version": VERSION, "source": found.name, "identity": found.identity, **asdict(reading)}
    manifest, dataset = _packed((cache_dir or cache_folder()) / "tokens" / content_hash(identity), found, reading)
    dataset.description = _description(found, reading, manifest, dataset)
    dataset.check(context)
    return dataset


def _packed(folder: Path, source: Source, reading: Reading) -> tuple[Manifest, Dataset]:
    """Open the cache's folder, packing it first when it is absent or damaged; another process may do so at once."""
    there = folder.exists()
    try:
        return open_folder(folder)
    except UserError:
        if there:
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _pack(folder, source, reading)
    except UserError as problem:
        if (folder / MANIFEST).exists():  # the other process was sooner
            return open_folder(folder)
        if isinstance(problem.__cause__, PermissionError) or getattr(problem.__cause__, "errno", None) == errno.EROFS:
            raise UserError(
                f"cannot write packed tokens to {folder}: set LOOPSCALE_CACHE to a folder you can write"
            ) from problem.__cause__
        raise
    return open_folder(folder)


def _pack(folder: Path, source: Source, reading: Reading) -> None:
    words = reading.make_tokenizer(source)
    with folder_aside(folder) as aside:
        write_text(aside / WORDS, words.to_json())
        with Writer(aside, words) as writer:
            writer.take(split_source(source, reading, words))
            manifest = writer.manifest(source.name, {"key": folder.name})
        write_record(aside / MANIFEST, manifest)


def _description(source: Source, reading: Reading, manifest: Manifest, dataset: Dataset) -> dict[str, Any]:
    """Give what provenance keeps: the name of a local file, not the path to it."""
    limit = {} if reading.max_tokens is None else {"max_tokens": reading.max_tokens}
    return {
        "source": source.shown,
        "sha256": manifest.text_sha256,
        "tokenizer": reading.tokenizer,
        "vocab_size": manifest.vocab_size,
        "tokens": dataset.description["tokens"],
        "documents": manifest.documents,
        "python": platform.python_version(),
        **limit,
    }
