"""`loopscale track`: send the metrics of a run to trackers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from loopscale.cli.options import JSON, PATH, finish


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
    lines = [f"{one.tracker}: {one.added} new steps, up to step {one.step}, in {one.place}" for one in done]
    finish([asdict(one) for one in done], "\n".join(lines), as_json)
