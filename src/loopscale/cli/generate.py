"""`loopscale generate`: sample text from a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--tokens", default=200, show_default=True, help="How many tokens to add.")
@click.option("--temperature", default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--loops", type=int, help="Apply the core this often; default: as in training.")
@click.option("--cache", help="Keys and values kept: per-visit (the default), last-visit, none.")
@click.option("--scale", type=click.Choice(["rescale", "freeze"]), help="With --loops: eps follows N, or stays.")
@click.option("--exit-below", type=float, help="End the visits once one changes the stream by less than this fraction.")
@click.option(
    "--model", metavar="PLACE", help="The factory that was trained, for a run of your model: file.py:make_model."
)
@click.option("--json", "as_json", is_flag=True, help="Print text and time as JSON.")
def command(
    run: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    loops: int | None,
    cache: str | None,
    scale: str | None,
    exit_below: float | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Continue a prompt with the model of the run folder RUN."""
    from loopscale.cli.progress import warn
    from loopscale.train import generate

    began = time.perf_counter()
    options = {"cache": cache, "scale": scale, "exit_below": exit_below}
    text = generate(run, prompt, tokens, temperature, seed, loops, **options, model=model, warn=warn)
    if not as_json:
        click.echo(text)
        return
    values = {
        "run": str(run),
        "prompt": prompt,
        "text": text,
        "tokens": tokens,
        "temperature": temperature,
        "seed": seed,
    }
    seconds = round(time.perf_counter() - began, 3)
    click.echo(json.dumps({**values, "loops": loops, **options, "seconds": seconds}))
