"""`loopscale train`: begin or resume a run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.errors import UserError

if TYPE_CHECKING:
    from loopscale.train import Outcome, TrainConfig, World


def _print_keys(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from loopscale.cli.keys import table

        click.echo(table())
        context.exit()


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a value of the config.")
@click.option("--from", "tuned", type=click.Path(path_type=Path), metavar="TOML", help="tuned.toml of loopscale tune.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; default: the next free runs/NAME.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue the run in DIR exactly.")
@click.option("--continue", "again", is_flag=True, help="Continue the run in --out when there is one: safe to repeat.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option(
    "--keys", is_flag=True, expose_value=False, is_eager=True, callback=_print_keys, help="List all config keys."
)
def command(
    config: Path | None,
    sets: tuple[str, ...],
    tuned: Path | None,
    out: Path | None,
    resume: Path | None,
    again: bool,
    as_json: bool,
) -> int:
    """Train the model of a CONFIG file (TOML), or continue a run with --resume.

    On several devices: torchrun --nproc-per-node 8 -m loopscale train CONFIG. Rank 0 alone writes and prints.

    Writes metrics, checkpoints and provenance into a run folder. Ctrl-C and SIGTERM finish the step and write a
    checkpoint.

    Exit codes: 0 finished, 1 the loss became non-finite, 2 a mistake to mend, 130 Ctrl-C, 143 SIGTERM.
    """
    if (config is None) == (resume is None):
        raise UserError("give either a config file or --resume DIR: loopscale train config.toml")
    if resume is not None and (sets or out is not None or tuned is not None):
        raise UserError("--resume continues a run exactly, so it takes no --set, --from or --out: leave them out")
    if again and out is None:
        raise UserError("--continue needs the folder of the run: add --out DIR")
    from loopscale.train import joined
    from loopscale.train.world import AgreedError

    try:
        with joined() as world:
            outcome = _train(config, sets, tuned, out, resume, again, world)
            if world.main:
                _show(outcome, as_json)
    except AgreedError:
        return 2  # rank 0 says it
    return outcome.exit_code


def _train(
    config: Path | None,
    sets: tuple[str, ...],
    tuned: Path | None,
    out: Path | None,
    resume: Path | None,
    again: bool,
    world: World,
) -> Outcome:
    from loopscale.cli.progress import progress, warn
    from loopscale.train import load_config, resume_run, train_run, with_tuned

    values = None
    if config is not None:
        with world.together():
            values = load_config(config, sets)
            if tuned is not None:
                values, cautions = with_tuned(values, tuned)
                for caution in cautions if world.main else ():
                    warn(caution)
            if out is not None and again and (out / "config.toml").exists():
                _check_same(values, out)
        out = Path(world.of_main(str(out or _free(config.stem))))
        if again and world.of_main("yes" if (out / "config.toml").exists() else "") == "yes":
            resume = out
    with progress() if world.main else nullcontext(_silent) as on_step:
        if resume is not None:
            return resume_run(resume, on_step=on_step, warn=warn, world=world)
        assert values is not None and out is not None
        return train_run(values, out, on_step=on_step, world=world)


def _silent(line: dict[str, Any], steps: int) -> None:
    return None


def _check_same(config: TrainConfig, run: Path) -> None:
    """Raise `UserError` unless the run in the folder is the one that is asked for."""
    from loopscale.train import open_run

    old, now = open_run(run).config.flat(), config.flat()
    for key in sorted({*old, *now}):
        if old.get(key) != now.get(key):
            raise UserError(
                f"--continue: {run} holds a run with {key} = {old.get(key, 'absent')}, asked for is "
                f"{now.get(key, 'absent')}: name another folder with --out"
            )


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
