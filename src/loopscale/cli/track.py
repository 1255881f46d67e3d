"""`loopscale track`: send the metrics of a run to trackers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from loopscale.cli.options import JSON, PATH


@click.command()
@click.argument("run", type=PATH)
@click.option("--to", "names", multiple=True, required=True, help="tensorboard, wandb or trackio; several with commas.")
@JSON
def command(run: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Send the steps of the run folder RUN that a tracker has not seen. Nothing leaves the machine.

    Live instead: loopscale train ... --set 'train.trackers=["tensorboard"]'.
    """
    from loopscale.trackers import track_run

    done = track_run(run, [name.strip() for text in names for name in text.split(",")])
    if as_json:
        click.echo(json.dumps([asdict(tracked) for tracked in done]))
        return
    for tracked in done:
        click.echo(f"{tracked.tracker}: {tracked.added} new steps, up to step {tracked.step}, in {tracked.place}")
