"""Type the records of a prepared folder: manifest.json, progress.json, and the header of a shard."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from loopscale.records.record import Record

# No path of a stranger's manifest leads out of its folder.
ShardName = Annotated[str, Field(pattern=r"^(train|validation)-\d{5,9}\.safetensors$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardRow(Record):
    """One shard of a prepared folder."""

    file: ShardName
    tokens: NonNegativeInt
    sha256: Digest


class Sides(Record):
    """The shards of both sides, in their order."""

    train: tuple[ShardRow, ...] = ()
    validation: tuple[ShardRow, ...] = ()


class Manifest(Record):
    """manifest.json: written last, so that a folder with it is whole. `asked` is what decided every byte.

    `text_sha256` is the hash of the documents; manifests of version 0.3 have neither that nor a seal.
    """

    SCHEMA: ClassVar[int] = 2
    OLDER: ClassVar[tuple[int | None, ...]] = (1,)
    FIX: ClassVar[str] = "restore it, or prepare the data again"

    source: str
    asked: dict[str, Any]
    tokenizer: str
    vocab_size: PositiveInt
    tokenizer_sha256: Digest
    documents: NonNegativeInt
    text_sha256: str = ""
    shards: Sides


class Done(Record):
    """The number of the first document that is in no finished shard, for each side."""

    train: NonNegativeInt = 0
    validation: NonNegativeInt = 0


class Preparing(Record):
    """progress.json: which shards are done while the rest is prepared."""

    OLDER: ClassVar[tuple[int | None, ...]] = (None,)
    FIX: ClassVar[str] = "prepare the data into another folder"

    identity: dict[str, Any]
    done: Done = Done()
    shards: Sides = Sides()
