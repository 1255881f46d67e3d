"""Documents -> memory-mapped token files, once: a second use, or another process, finds them packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.data.tokenizer import SEPARATOR, Tokenizer
from loopscale.files import replacing, write_text

VERSION = 2
Packed = NDArray[np.uint16] | NDArray[np.uint32]


def cache_key(**settings: Any) -> str:
    """Content hash of all that decides the packed tokens."""
    text = json.dumps({"version": VERSION, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def pack(folder: Path, parts: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> dict[str, Any]:
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
    words = tokenizer.to_json()
    meta = {
        "version": VERSION,
        "dtype": np.dtype(dtype).name,
        "tokens": counts,
        "documents": documents,
        "sha256": digest.hexdigest(),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": _sha256(words),
    }
    write_text(folder / "tokenizer.json", words)
    write_text(folder / "meta.json", json.dumps(meta))
    return meta


def packed_meta(folder: Path) -> dict[str, Any] | None:
    """The meta of a whole packing; None when it is absent, unreadable, of another size or with another tokenizer."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        size = np.dtype(meta["dtype"]).itemsize
        sizes = all((folder / f"{side}.bin").stat().st_size == count * size for side, count in meta["tokens"].items())
        words = (folder / "tokenizer.json").read_text(encoding="utf-8")
        whole = sizes and meta["version"] == VERSION and meta["tokenizer_sha256"] == _sha256(words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if whole else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def open_tokens(folder: Path, side: str, meta: dict[str, Any]) -> Packed:
    """The tokens of one side, memory-mapped."""
    if meta["tokens"][side] == 0:
        return np.zeros(0, dtype=meta["dtype"])
    return np.memmap(folder / f"{side}.bin", dtype=meta["dtype"], mode="r")
