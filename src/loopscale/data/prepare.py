"""`loopscale data prepare`: documents -> shards of tokens, in parallel, continued where it was stopped.

The folder is the same byte for byte whatever the number of workers, and whether or not it was interrupted: documents are
taken in order, and a shard holds whole documents. `progress.json` says which shards are done.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.data.documents import Reading, Source, files_in, find_source
from loopscale.data.prepared import (
    MANIFEST,
    PROGRESS,
    SIDES,
    is_prepared,
    open_shards,
    read_manifest,
    shard_file,
    text_sha256,
)
from loopscale.data.split import split_source
from loopscale.data.tokenizer import SEPARATOR, Tokenizer, tokenizer_from_json
from loopscale.errors import UserError, number
from loopscale.files import LOCK, alone, cores, file_sha256, new_folder, read_bounded, write_text
from loopscale.records import Manifest, Preparing, ShardRow, read_record, write_record

SHARD = 2**27  # tokens after which a shard ends
WORK = 2**20  # characters of one piece of work; memory holds a few of these
WORDS = "tokenizer.json"
Report = Callable[[int, int, int], object]  # documents, tokens and shards so far


@dataclass(frozen=True)
class Preparation(Reading):
    """What decides the prepared folder, byte for byte. Raises `UserError` for values out of range."""

    tokenizer_from: str | None = None
    shard_tokens: int = SHARD

    def __post_init__(self) -> None:
        super().__post_init__()
        number("shard_tokens", self.shard_tokens, 1, whole=True)


def prepare_data(
    source: str,
    out: Path,
    settings: Preparation,
    *,
    workers: int | None = None,
    report: Report = lambda documents, tokens, shards: None,
) -> Manifest:
    """Tokenize `source` (as in `load_data`) into `out` and give the manifest; a whole folder is left as it is.

    workers: pieces of work tokenized at once (default: the cores); the tokenizers library works outside of Python's lock.

    Raises `UserError` for what `load_data` refuses, a folder that holds something else or that another process prepares, or
    a preparation that was begun with other settings. A folder without a finished shard is taken away again.
    """
    found = find_source(source, identity=_quick_identity)
    asked = {"source": found.shown, "identity": found.identity, **asdict(settings)}
    if (done := _whole(out, asked)) is not None and not any(map(_left, out.iterdir())):
        return done
    if out.exists() and not is_prepared(out) and (not out.is_dir() or any(not _left(file) for file in out.iterdir())):
        raise UserError(f"{out} already exists and is no empty folder: name another folder with --out")
    with new_folder(out), alone(out / LOCK, f"another process prepares {out} ({{process}}): wait until it ends"):
        for left in list(out.iterdir()):  # of killed processes: this one holds the lock
            if _left(left) and left.name != LOCK:
                left.unlink()
        if (done := _whole(out, asked)) is not None:
            for file in (PROGRESS, LOCK):
                (out / file).unlink(missing_ok=True)
            return done
        progress = _begin(out, asked)
        try:
            write_record(out / PROGRESS, progress)  # before the tokenizer: with it the folder is known as begun
            words = _tokenizer(out, found, settings)
            open_shards(out, progress.shards, text_sha256(words.to_json()))
            with Writer(out, words, settings.shard_tokens, progress, report) as writer:
                writer.take(split_source(found, settings, words), workers)
                manifest = writer.manifest(found.shown, asked)
            if not (manifest.shards.train and manifest.shards.validation):
                raise UserError(f"{source} has too little text for both sides: give more text")
        except BaseException:
            if not any(file.suffix == ".safetensors" for file in out.iterdir()):
                for file in (PROGRESS, WORDS, LOCK):
                    (out / file).unlink(missing_ok=True)
            raise
        write_record(out / MANIFEST, manifest)
        (out / PROGRESS).unlink()
        (out / LOCK).unlink()
    return manifest


class Writer(ExitStack):
    """Takes documents in order, tokenizes them side by side and writes shards; finished ones are passed over.

    A context: when it is left by an error, nothing remains of the shards that were not yet whole.
    """

    def __init__(
        self,
        out: Path,
        words: Tokenizer,
        shard_tokens: int = SHARD,
        progress: Preparing | None = None,
        report: Report = lambda documents, tokens, shards: None,
    ) -> None:
        super().__init__()
        self.out, self.words, self.report, self.shard_tokens = out, words, report, shard_tokens
        self.progress = progress
        self.tokenizer = text_sha256(words.to_json())
        self.dtype: np.dtype[Any] = np.dtype("<u2" if words.vocab_size <= 2**16 else "<u4")
        begun = progress or Preparing(identity={})
        self.done: dict[str, int] = begun.done.model_dump()
        self.rows: dict[str, list[ShardRow]] = {side: list(getattr(begun.shards, side)) for side in SIDES}
        self.open: dict[str, tuple[ExitStack, Callable[[NDArray[Any]], None]]] = {}
        self.counts = dict.fromkeys(SIDES, 0)
        self.documents, self.digest = 0, hashlib.sha256()

    def take(self, parts: Iterator[tuple[str, str]], workers: int | None = None) -> None:
        """Take all documents: (side, text). At most `workers` + 2 pieces of work are in memory."""
        running: deque[tuple[list[str], Future[list[NDArray[Any] | None]]]] = deque()
        workers = workers or cores()

        def write_first() -> None:
            sides, future = running.popleft()
            for side, tokens in zip(sides, future.result(), strict=True):
                self._add(side, tokens)
            self._tell()

        with ThreadPoolExecutor(workers) as pool:
            for number, batch in _work(parts):
                for _, text in batch:
                    self.digest.update(text.encode("utf-8", errors="replace"))
                wanted = [text if number + k >= self.done[side] else None for k, (side, text) in enumerate(batch)]
                running.append(([side for side, _ in batch], pool.submit(self._tokens, wanted)))
                if len(running) >= workers + 2:
                    write_first()
            while running:
                write_first()

    def manifest(self, source: str, asked: dict[str, Any]) -> Manifest:
        """Write what is left and give the manifest."""
        for side in list(self.open):
            self._end(side)
        self._tell()
        return Manifest(
            source=source,
            asked=asked,
            tokenizer=self.words.name,
            vocab_size=self.words.vocab_size,
            tokenizer_sha256=self.tokenizer,
            documents=self.documents,
            text_sha256=self.digest.hexdigest(),
            shards=self.rows,  # type: ignore[arg-type]
        )

    def _tokens(self, texts: list[str | None]) -> list[NDArray[Any] | None]:
        """Tokenize what is wanted, a separator after each document."""
        encoded = iter(self.words.encode_batch([text for text in texts if text is not None], self.dtype))
        end = np.array([SEPARATOR], self.dtype)
        return [None if text is None else np.concatenate([next(encoded), end]) for text in texts]

    def _add(self, side: str, tokens: NDArray[Any] | None) -> None:
        """Take the next document; None for one that is in a finished shard."""
        self.documents += 1
        if tokens is not None:
            if side not in self.open:
                shard = self.enter_context(ExitStack())
                path = self.out / f"{side}-{len(self.rows[side]):05d}.safetensors"
                self.open[side] = shard, shard.enter_context(shard_file(path, self.dtype, self.tokenizer))
            self.open[side][1](tokens)
            self.counts[side] += len(tokens)
            if self.counts[side] >= self.shard_tokens:
                self._end(side)

    def _tell(self) -> None:
        rows = [row for side in SIDES for row in self.rows[side]]
        self.report(self.documents, sum(row.tokens for row in rows) + sum(self.counts.values()), len(rows))

    def _end(self, side: str) -> None:
        shard, _ = self.open.pop(side)
        shard.close()
        name = f"{side}-{len(self.rows[side]):05d}.safetensors"
        self.rows[side].append(ShardRow(file=name, tokens=self.counts[side], sha256=file_sha256(self.out / name)))
        self.done[side], self.counts[side] = self.documents, 0
        if self.progress is not None:
            state = {"identity": self.progress.identity, "done": self.done, "shards": self.rows}
            write_record(self.out / PROGRESS, Preparing.model_validate(state))


def _work(parts: Iterable[tuple[str, str]]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Give (number of the first document, documents) of about `WORK` characters."""
    first, size, batch = 0, 0, list[tuple[str, str]]()
    for part in parts:
        batch.append(part)
        size += len(part[1])
        if size >= WORK:
            yield first, batch
            first, size, batch = first + len(batch), 0, []
    if batch:
        yield first, batch


def _whole(out: Path, asked: dict[str, Any]) -> Manifest | None:
    """Give the manifest of a folder that is done; raises `UserError` when it was made with other settings."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    _same(manifest.asked, asked, f"{out} was prepared")
    open_shards(out, manifest.shards, manifest.tokenizer_sha256)
    return manifest


def _begin(out: Path, asked: dict[str, Any]) -> Preparing:
    """Give the progress to continue from; raises `UserError` when it was begun with other settings."""
    if not (out / PROGRESS).is_file():
        return Preparing(identity=asked)
    progress = read_record(out / PROGRESS, Preparing)
    _same(progress.identity, asked, f"the preparation of {out} was begun")
    return progress


def _same(made: dict[str, Any], asked: dict[str, Any], told: str) -> None:
    for key, value in asked.items():
        if made.get(key) != value:
            raise UserError(f"{told} with another {key}: name another folder with --out")


def _left(file: Path) -> bool:
    """Say whether a killed preparation left this file beside what it wrote."""
    return file.name.startswith(tuple(f".{name}" for name in ("lock", *SIDES, PROGRESS, MANIFEST, WORDS)))


def _tokenizer(out: Path, source: Source, settings: Preparation) -> Tokenizer:
    """Give the tokenizer that was begun with, one given as a file, or a new one made from the first documents."""
    file = out / WORDS
    if file.is_file():
        try:
            return tokenizer_from_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{file} is damaged or cannot be read: {Preparing.FIX}") from None
    if settings.tokenizer_from is not None:
        given = Path(settings.tokenizer_from)
        given = given / WORDS if given.is_dir() else given
        try:
            words = tokenizer_from_json(read_bounded(given))
        except (OSError, UnicodeDecodeError, UserError):
            raise UserError(f"cannot read the tokenizer {given}: name a tokenizer.json of a run or folder") from None
    else:
        words = settings.make_tokenizer(source)
    write_text(file, words.to_json())
    return words


def _quick_identity(place: Path) -> str:
    """Hash names, sizes and times of change: hashing terabytes before the first shard would take hours."""
    rows = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files_in(place)]
    return text_sha256("\n".join(rows))
