"""A prepared folder: many shards read as one stream of tokens, a manifest, the tokenizer.

DIR/manifest.json           written last: a folder with it is whole; names the tokenizer and every shard with its sha256
DIR/tokenizer.json          turns text into tokens and back
DIR/train-00000.safetensors, ..., DIR/validation-00000.safetensors, ...

A shard holds "tokens" (U16 or U32, [n]) and "crc32" (U32, one for each 64 KiB of tokens, checked when first touched); its
metadata hold the sha256 of the tokenizer's JSON. Anything that reads safetensors reads a shard.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.data.dataset import Dataset
from loopscale.data.documents import Reading
from loopscale.data.tokenizer import tokenizer_from_json
from loopscale.errors import UserError
from loopscale.files import check_folder, file_sha256, replacing
from loopscale.records import Manifest, ShardRow, Sides, read_record

BLOCK = 2**16  # bytes under one checksum: a window of 2048 tokens costs about 50 us the first time, nothing later
HEADER = 1024  # bytes kept free for the header, which is known only at the end
DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4")}
AGAIN = "restore it, or prepare the data again"


class Shard:
    """The tokens of one file, memory-mapped. `len` is their number; `take` returns the tokens at given places.

    Raises `UserError` when the file is absent, truncated, not a shard, or made with a different tokenizer than `tokenizer`.
    """

    def __init__(self, path: Path, tokenizer: str | None = None) -> None:
        header, start = read_header(path)
        try:
            made_with = str(header["__metadata__"]["tokenizer"])
            tokens, sums = header["tokens"], header["crc32"]
            dtype, (count,), (blocks,) = DTYPES[tokens["dtype"]], tokens["shape"], sums["shape"]
            places = [start + tokens["data_offsets"][0], start + sums["data_offsets"][0]]
            end = start + sums["data_offsets"][1]
            numbers = [count, blocks, *tokens["data_offsets"], *sums["data_offsets"]]
            fits = all(type(number) is int and number >= 0 for number in numbers) and tokens["data_offsets"][0] == 0
            fits = fits and tokens["data_offsets"][1] == count * dtype.itemsize and end - places[1] == 4 * blocks
            fits = fits and blocks == -(-count * dtype.itemsize // BLOCK) and sums["dtype"] == "U32"
        except (KeyError, TypeError, ValueError, IndexError):
            fits = False
        if not fits:
            raise UserError(f"{path} is no shard of tokens, or its header is damaged: {AGAIN}")
        if tokenizer is not None and made_with != tokenizer:
            raise UserError(
                f"{path} was made with another tokenizer ({made_with[:12]}, not {tokenizer[:12]}): "
                "take it out of the folder, or prepare the data again"
            )
        size = path.stat().st_size
        if size != end:
            raise UserError(f"{path} is {'truncated' if size < end else 'too long'} ({size} of {end} bytes): {AGAIN}")
        self.path = path
        self._tokens = np.memmap(path, dtype, "r", places[0], (count,)) if count else np.zeros(0, dtype)
        self._sums = np.fromfile(path, np.dtype("<u4"), blocks, offset=places[1])
        self._seen = np.zeros(blocks, dtype=bool)
        self._per_block = BLOCK // dtype.itemsize

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Give the tokens at `places`; raises `UserError` when a block that holds one of them is damaged."""
        for block in np.unique(places // self._per_block):
            if not self._seen[block]:
                self._check(int(block))
        return self._tokens[places]

    def check(self) -> None:
        """Read everything; raises `UserError` when a block is damaged."""
        for block in range(len(self._seen)):
            self._check(block)

    def _check(self, block: int) -> None:
        content = self._tokens[block * self._per_block : (block + 1) * self._per_block]
        if zlib.crc32(content.tobytes()) != self._sums[block]:
            first, last = block * self._per_block, block * self._per_block + len(content) - 1
            raise UserError(f"{self.path} is damaged (checksum of its tokens {first} to {last}): {AGAIN}")
        self._seen[block] = True


@contextmanager
def shard_file(path: Path, dtype: np.dtype[Any], tokenizer: str) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Give a function that adds tokens to a shard, on disk as they come; the shard is there when the block ends well."""
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    sums, crc, count = [], 0, 0
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(b"\0" * HEADER)

        def add(tokens: NDArray[Any]) -> None:
            nonlocal crc, count
            raw = memoryview(tokens.astype(dtype, copy=False).tobytes())
            file.write(raw)
            filled, count = count * dtype.itemsize % BLOCK, count + len(tokens)
            while raw:
                part, raw = raw[: BLOCK - filled], raw[BLOCK - filled :]
                crc, filled = zlib.crc32(part, crc), filled + len(part)
                if filled == BLOCK:
                    sums.append(crc)
                    crc = filled = 0

        yield add
        size = count * dtype.itemsize
        if size % BLOCK:
            sums.append(crc)
        gap = -size % 4  # safetensors wants no holes: the gap is a tensor of its own
        file.write(b"\0" * gap + np.array(sums, "<u4").tobytes())
        file.seek(0)
        file.write(_header(kind, count, size, gap, len(sums), tokenizer))


def _header(kind: str, count: int, size: int, gap: int, blocks: int, tokenizer: str) -> bytes:
    end = size + gap
    tensors: dict[str, Any] = {
        "__metadata__": {"tokenizer": tokenizer},
        "tokens": {"dtype": kind, "shape": [count], "data_offsets": [0, size]},
        "crc32": {"dtype": "U32", "shape": [blocks], "data_offsets": [end, end + 4 * blocks]},
    }
    if gap:
        tensors["gap"] = {"dtype": "U8", "shape": [gap], "data_offsets": [size, end]}
    text = json.dumps(tensors).encode().ljust(HEADER - 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file and where its data begin; raises `UserError` when there is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(length) if length < 2**20 else b""
        header = json.loads(raw)
    except OSError as cause:
        raise UserError(f"cannot read the shard {path} ({cause.strerror}): {AGAIN}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is no shard of tokens, or its beginning is damaged: {AGAIN}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} is no shard of tokens: {AGAIN}")
    return header, 8 + length


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
    check_folder(folder, "make it with loopscale data prepare SOURCE --out FOLDER")
    if not (folder / MANIFEST).exists():
        raise UserError(f"the preparation of {folder} is not finished: run the same loopscale data prepare again")
    return read_record(folder / MANIFEST, Manifest)


def open_folder(folder: Path) -> tuple[Manifest, Dataset]:
    """Open a whole folder; raises `UserError` when it is not, or a shard is damaged or of a different tokenizer."""
    manifest = read_manifest(folder)
    words = tokenizer_from_json(_tokenizer_text(folder, manifest))
    if (words.name, words.vocab_size) != (manifest.tokenizer, manifest.vocab_size):
        raise UserError(f"{folder / MANIFEST} names another tokenizer than tokenizer.json is: restore it")
    opened = open_shards(folder, manifest.shards, manifest.tokenizer_sha256)
    sides = {side: Shards(shards) for side, shards in opened.items()}
    return manifest, Dataset(sides, words, _description(folder, manifest))


def open_prepared(folder: Path, asked: Reading) -> Dataset:
    """Open a prepared folder; raises `UserError` as `open_folder`, and for settings that contradict the manifest."""
    manifest, dataset = open_folder(folder)
    _same("data.tokenizer", asked.tokenizer, manifest.tokenizer, folder)
    if asked.vocab_size is not None:
        _same("data.vocab_size", asked.vocab_size, manifest.vocab_size, folder)
    if asked.max_tokens is not None:
        raise UserError(f"{folder} is prepared, data.max_tokens cannot shorten it: leave it out")
    return dataset


def open_shards(folder: Path, shards: Sides, tokenizer: str) -> dict[str, list[Shard]]:
    """Open the shards of both sides; raises `UserError` when one is absent, truncated or of a different tokenizer."""
    return {side: [_shard(folder, row, tokenizer) for row in getattr(shards, side)] for side in SIDES}


def _shard(folder: Path, row: ShardRow, tokenizer: str) -> Shard:
    shard = Shard(folder / row.file, tokenizer)
    if len(shard) != row.tokens:
        raise UserError(f"{shard.path} has {len(shard)} tokens, the manifest says {row.tokens}: {AGAIN}")
    return shard


def verify(folder: Path) -> Manifest:
    """Read every byte against the manifest's sha256 and give the manifest; raises `UserError` naming what is damaged."""
    manifest = read_manifest(folder)
    _tokenizer_text(folder, manifest)
    for side, opened in open_shards(folder, manifest.shards, manifest.tokenizer_sha256).items():
        for shard, row in zip(opened, getattr(manifest.shards, side), strict=True):
            shard.check()
            if file_sha256(shard.path) != row.sha256:
                raise UserError(f"{shard.path} does not match its sha256: {AGAIN}")
    return manifest


def text_sha256(text: str) -> str:
    """Hash a text: what shards name their tokenizer by."""
    return hashlib.sha256(text.encode()).hexdigest()


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
