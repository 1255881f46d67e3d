"""`loopscale generate`: sample text from a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--tokens", default=200, show_default=True, help="How many tokens to add.")
@click.option("--temperature", default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--loops", type=int, help="Apply the core this often; default: as in training.")
def command(run: Path, prompt: str, tokens: int, temperature: float, seed: int, loops: int | None) -> None:
    """Continue a prompt with the model of the run folder RUN."""
    from loopscale.cli.progress import warn
    from loopscale.train import generate

    click.echo(generate(run, prompt, tokens, temperature, seed, loops, warn=warn))
