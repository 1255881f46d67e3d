"""A prepared folder: many shards read as one stream of tokens, a manifest, the tokenizer.

DIR/manifest.json           written last: a folder with it is whole; names the tokenizer and every shard with its sha256
DIR/tokenizer.json          turns text into tokens and back
DIR/train-00000.safetensors, ..., DIR/validation-00000.safetensors, ...     see `shard`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.data.dataset import Dataset
from loopscale.data.reading import Reading
from loopscale.data.shard import Shard
from loopscale.data.tokenizer import tokenizer_from_json
from loopscale.errors import UserError
from loopscale.files import file_sha256
from loopscale.records import Manifest, ShardRow, Sides, read_record

SIDES = ("train", "validation")
MANIFEST, PROGRESS = "manifest.json", "progress.json"


class Shards:
    """The tokens of several shards, end to end."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._shards = list(shards)
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Give the tokens at `places`, in their shape; raises `UserError` when a block that holds one is damaged."""
        if len(self._shards) == 1:
            return self._shards[0].take(places)
        flat = places.ravel()
        found = np.empty(len(flat), dtype=np.int64)
        holder = np.searchsorted(self._ends, flat, side="right")
        for number in np.unique(holder):
            inside = holder == number
            begins = int(self._ends[number]) - len(self._shards[number])
            found[inside] = self._shards[number].take(flat[inside] - begins)
        return found.reshape(places.shape)


def is_prepared(place: Path) -> bool:
    """Say whether this is a folder that `loopscale data prepare` finished or began."""
    return (place / MANIFEST).is_file() or (place / PROGRESS).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a whole folder; raises `UserError` when it is absent, damaged or of a later version."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: make it with loopscale data prepare SOURCE --out {folder}")
    if not (folder / MANIFEST).exists():
        raise UserError(f"the preparation of {folder} is not finished: run the same loopscale data prepare again")
    return read_record(folder / MANIFEST, Manifest)


def open_folder(folder: Path) -> tuple[Manifest, Dataset]:
    """Open a whole folder.

    Raises `UserError` for a folder that is not whole, a shard that is absent, truncated or of another tokenizer.
    """
    manifest = read_manifest(folder)
    words = tokenizer_from_json(_tokenizer_text(folder, manifest))
    if (words.name, words.vocab_size) != (manifest.tokenizer, manifest.vocab_size):
        raise UserError(f"{folder / MANIFEST} names another tokenizer than tokenizer.json is: restore it")
    sides = {side: Shards(_shards(folder, getattr(manifest.shards, side), manifest.tokenizer_sha256)) for side in SIDES}
    return manifest, Dataset(sides, words, _description(folder, manifest))


def open_prepared(folder: Path, asked: Reading) -> Dataset:
    """Open a prepared folder as a data set. What was decided by its preparation cannot be asked for otherwise.

    Raises `UserError` as `open_folder`, and for settings that contradict the manifest.
    """
    manifest, dataset = open_folder(folder)
    _same("data.tokenizer", asked.tokenizer, manifest.tokenizer, folder)
    if asked.vocab_size is not None:
        _same("data.vocab_size", asked.vocab_size, manifest.vocab_size, folder)
    if asked.max_tokens is not None:
        raise UserError(f"{folder} is prepared, data.max_tokens cannot shorten it: leave it out")
    return dataset


def check_shards(folder: Path, shards: Sides, tokenizer: str) -> None:
    """Raise `UserError` when a shard is absent, truncated or of another tokenizer: a look at each header, no more."""
    for side in SIDES:
        _shards(folder, getattr(shards, side), tokenizer)


def verify(folder: Path) -> Manifest:
    """Read every byte against the manifest's sha256 and give the manifest; raises `UserError` naming what is damaged."""
    manifest = read_manifest(folder)
    _tokenizer_text(folder, manifest)
    for side in SIDES:
        rows = getattr(manifest.shards, side)
        for shard, row in zip(_shards(folder, rows, manifest.tokenizer_sha256), rows, strict=True):
            shard.check()
            if file_sha256(shard.path) != row.sha256:
                raise UserError(f"{shard.path} does not match its sha256: restore it, or prepare the data again")
    return manifest


def text_sha256(text: str) -> str:
    """Hash a text: what shards name their tokenizer by."""
    return hashlib.sha256(text.encode()).hexdigest()


def _shards(folder: Path, rows: Iterable[ShardRow], tokenizer: str) -> list[Shard]:
    found = []
    for row in rows:
        shard = Shard(folder / row.file, tokenizer)
        if len(shard) != row.tokens:
            raise UserError(
                f"{shard.path} has {len(shard)} tokens, the manifest says {row.tokens}: "
                "restore it, or prepare the data again"
            )
        found.append(shard)
    return found


def _tokenizer_text(folder: Path, manifest: Manifest) -> str:
    try:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    if text_sha256(text) != manifest.tokenizer_sha256:
        raise UserError(f"{folder / 'tokenizer.json'} is not the one that the manifest names: restore it")
    return text


def _same(key: str, asked: Any, made: Any, folder: Path) -> None:
    if asked != made:
        raise UserError(f"{key} = {asked!r}, but {folder} was prepared with {made!r}: set {key} = {made!r}")


def _description(folder: Path, manifest: Manifest) -> dict[str, Any]:
    sums = [row.sha256 for side in SIDES for row in getattr(manifest.shards, side)]
    return {
        "source": folder.resolve().name,
        "sha256": text_sha256("".join([manifest.tokenizer_sha256, *sums])),
        "tokenizer": manifest.tokenizer,
        "vocab_size": manifest.vocab_size,
        "tokens": {side: sum(row.tokens for row in getattr(manifest.shards, side)) for side in SIDES},
        "documents": manifest.documents,
        "prepared_from": manifest.source,
    }
