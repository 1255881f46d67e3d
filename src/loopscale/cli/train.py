"""`loopscale train`: begin or resume a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loopscale.errors import UserError

if TYPE_CHECKING:
    from loopscale.train import Outcome


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a value of the config.")
@click.option("--from", "tuned", type=click.Path(path_type=Path), metavar="TOML", help="tuned.toml of loopscale tune.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; default: the next free runs/NAME.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue the run in DIR exactly.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(
    config: Path | None, sets: tuple[str, ...], tuned: Path | None, out: Path | None, resume: Path | None, as_json: bool
) -> int:
    """Train the model of a CONFIG file (TOML), or continue a run with --resume.

    Writes metrics, checkpoints and provenance into a run folder. Ctrl-C and SIGTERM finish the step and write a
    checkpoint.

    Exit codes: 0 finished, 1 the loss became non-finite, 2 a mistake to mend, 130 Ctrl-C, 143 SIGTERM.
    """
    if (config is None) == (resume is None):
        raise UserError("give either a config file or --resume DIR: loopscale train examples/tiny.toml")
    if resume is not None and (sets or out is not None or tuned is not None):
        raise UserError("--resume continues a run exactly, so it takes no --set, --from or --out: leave them out")
    from loopscale.cli.progress import progress, warn
    from loopscale.train import load_config, resume_run, train_run, with_tuned

    with progress() as on_step:
        if resume is not None:
            outcome = resume_run(resume, on_step=on_step, warn=warn)
        elif config is not None:
            values = load_config(config, sets)
            if tuned is not None:
                values, cautions = with_tuned(values, tuned)
                for caution in cautions:
                    warn(caution)
            outcome = train_run(values, out or _free(config.stem), on_step=on_step)
    _show(outcome, as_json)
    return outcome.exit_code


def _free(name: str) -> Path:
    """Give runs/NAME, or runs/NAME-2, -3, ... when that is taken."""
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(outcome)))
    if outcome.status != "finished":
        click.echo(f"loopscale: {outcome.sentence}", err=True)
        return
    if not as_json:
        losses = {"train loss": outcome.loss, "validation loss": outcome.val_loss}
        said = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
        click.echo(", ".join([f"{outcome.sentence} in {outcome.seconds:.0f} s", *said]))
        click.echo(f"run: {outcome.run}")
