"""Documents -> memory-mapped token files, once: a second use, or another process, finds them packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.atomic import replacing, write_text
from loopscale.data.tokenizer import SEPARATOR, Tokenizer

VERSION = 1
Packed = NDArray[np.uint16] | NDArray[np.uint32]


def cache_key(**settings: Any) -> str:
    """Content hash of all that decides the packed tokens."""
    text = json.dumps({"version": VERSION, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def split_documents(documents: Iterable[str], validation_fraction: float) -> Iterator[tuple[str, str]]:
    """("train" | "validation", document): by hash of the document, so a document never moves between runs.

    A first document alone is cut in two at a line boundary; see `_cut`.
    """
    kept: str | None = None
    several = False
    for document in documents:
        if kept is None:
            kept = document
            continue
        if not several:
            several = True
            yield _side(kept, validation_fraction), kept
        yield _side(document, validation_fraction), document
    if kept is not None and not several:
        yield from _cut(kept, validation_fraction)


def _side(document: str, fraction: float) -> str:
    digest = hashlib.sha256(document.encode("utf-8", errors="replace")).digest()
    return "validation" if int.from_bytes(digest[:8], "big") < fraction * 2**64 else "train"


def _cut(document: str, fraction: float) -> Iterator[tuple[str, str]]:
    target = round(len(document) * (1 - fraction))
    at = document.find("\n", target) + 1
    if not 0 < at < len(document):
        at = document.rfind("\n", 0, target) + 1 or target
    yield "train", document[:at]
    yield "validation", document[at:]


def pack(
    folder: Path, parts: Iterable[tuple[str, str]], tokenizer: Tokenizer, max_tokens: int | None
) -> dict[str, Any]:
    """Write train.bin, validation.bin, tokenizer.json and, last, meta.json; returns the meta.

    A folder without a matching meta.json does not count: a killed packing is done again.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    separator = np.array([SEPARATOR], dtype=dtype)
    counts, documents, digest = {"train": 0, "validation": 0}, 0, hashlib.sha256()
    with (
        replacing(folder / "train.bin") as train,
        replacing(folder / "validation.bin") as validation,
        train.open("wb") as train_file,
        validation.open("wb") as validation_file,
    ):
        files = {"train": train_file, "validation": validation_file}
        for side, document in parts:
            tokens = np.concatenate([tokenizer.encode(document).astype(dtype), separator])
            files[side].write(tokens.tobytes())
            counts[side] += len(tokens)
            documents += 1
            digest.update(document.encode("utf-8", errors="replace"))
            if max_tokens is not None and sum(counts.values()) >= max_tokens:
                break
    meta = {
        "version": VERSION,
        "dtype": np.dtype(dtype).name,
        "tokens": counts,
        "documents": documents,
        "sha256": digest.hexdigest(),
        "vocab_size": tokenizer.vocab_size,
    }
    write_text(folder / "tokenizer.json", tokenizer.to_json())
    write_text(folder / "meta.json", json.dumps(meta))
    return meta


def packed_meta(folder: Path) -> dict[str, Any] | None:
    """The meta of a whole packing; None when it is absent, unreadable, or its files have another size."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        size = np.dtype(meta["dtype"]).itemsize
        whole = all((folder / f"{side}.bin").stat().st_size == count * size for side, count in meta["tokens"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if whole and meta.get("version") == VERSION and (folder / "tokenizer.json").exists() else None


def open_tokens(folder: Path, side: str, meta: dict[str, Any]) -> Packed:
    """The tokens of one side, memory-mapped."""
    if meta["tokens"][side] == 0:
        return np.zeros(0, dtype=meta["dtype"])
    return np.memmap(folder / f"{side}.bin", dtype=meta["dtype"], mode="r")
