"""`loopscale generate`: sample text from a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from loopscale.cli.options import JSON, PATH, TRAINED, finish


@click.command()
@click.argument("run", type=PATH)
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--tokens", default=200, show_default=True, help="How many tokens to add.")
@click.option("--temperature", default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--loops", type=int, help="Apply the core this often; default: as in training.")
@click.option("--cache", help="Keys and values kept: per-visit (the default), last-visit, none.")
@click.option("--scale", type=click.Choice(["rescale", "freeze"]), help="With --loops: eps follows N, or stays.")
@click.option("--exit-below", type=float, help="End the visits once one changes the stream by less than this fraction.")
@TRAINED
@JSON
def command(run: Path, prompt: str, tokens: int, as_json: bool, **options: Any) -> None:
    """Continue a prompt with the model of the run folder RUN."""
    from loopscale.cli.sentence import warn
    from loopscale.train import generate

    began = time.perf_counter()
    text = generate(run, prompt, tokens, **options, warn=warn)
    told = {"run": str(run), "prompt": prompt, "text": text, "tokens": tokens, **options}
    del told["model"]
    finish({**told, "seconds": round(time.perf_counter() - began, 3)}, text, as_json)
