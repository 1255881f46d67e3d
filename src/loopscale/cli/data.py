"""`loopscale data`: turn text into shards of tokens, and check them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.lazy import StrictGroup
from loopscale.cli.options import JSON, PATH

if TYPE_CHECKING:
    from loopscale.records import Manifest

COUNT, SHARE = click.IntRange(min=1), click.FloatRange(0, 1, min_open=True, max_open=True)


@click.group(cls=StrictGroup)
def command() -> None:
    """Prepare data for training, and check what was prepared."""


@command.command()
@click.argument("source")
@click.option("--out", type=PATH, required=True, help="Folder of the shards.")
@click.option("--tokenizer", type=click.Choice(["bytes", "bpe"]), default="bytes", show_default=True)
@click.option("--vocab-size", type=int, help="Tokens of a BPE; default 1024.")
@click.option("--tokenizer-from", metavar="FILE", help="Use this tokenizer.json, of a run or a prepared folder.")
@click.option("--text-field", default="text", show_default=True, help="The field of JSONL, parquet or a data set.")
@click.option("--validation-fraction", type=SHARE, default=0.05, show_default=True, help="Share held out, by hash.")
@click.option("--shard-tokens", type=COUNT, default=2**27, show_default=True, help="Tokens after which a shard ends.")
@click.option("--workers", type=COUNT, help="Pieces tokenized at once; default: the cores.")
@JSON
def prepare(source: str, out: Path, workers: int | None, as_json: bool, **values: Any) -> int:
    """Tokenize SOURCE (a file, a folder, stdlib, synthetic:TASK, hf:NAME[:SPLIT]) into a folder of shards.

    Stop it at any moment; the same command goes on from the last whole shard, and the result is the same byte for byte.
    Train on it with --set data.path=FOLDER.
    """
    from loopscale.data import Preparation, prepare_data

    manifest = prepare_data(source, out, Preparation(**values), workers=workers, report=_report())
    _show(out, manifest, as_json)
    return 0


@command.command()
@click.argument("folder", type=PATH)
@JSON
def verify(folder: Path, as_json: bool) -> int:
    """Read every byte of a prepared FOLDER against its checksums."""
    from loopscale.data import verify as check

    _show(folder, check(folder), as_json)
    return 0


def _report() -> Any:
    """Give what writes over its line in a terminal, and elsewhere a line for about a million tokens."""
    terminal, said = sys.stderr.isatty(), [0]

    def report(documents: int, tokens: int, shards: int) -> None:
        text = f"{documents:,} documents, {tokens:,} tokens, {shards} shards"
        if terminal:
            click.echo(f"\r{text}", err=True, nl=False)
        elif tokens >= said[0] + 10**6:
            said[0] = tokens
            click.echo(text, err=True)

    return report


def _show(folder: Path, manifest: Manifest, as_json: bool) -> None:
    if as_json:
        click.echo(manifest.model_dump_json())
        return
    if sys.stderr.isatty():
        click.echo("", err=True)
    for side, rows in (("train", manifest.shards.train), ("validation", manifest.shards.validation)):
        click.echo(f"{side}: {sum(row.tokens for row in rows):,} tokens in {len(rows)} shards")
    click.echo(f"tokenizer: {manifest.tokenizer}, {manifest.vocab_size} tokens")
    click.echo(f"train on it: --set data.path={folder} --set data.tokenizer={manifest.tokenizer}")
