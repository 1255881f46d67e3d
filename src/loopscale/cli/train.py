"""`loopscale train`: begin, continue or extend a run of the house model or of your own."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.options import JSON, MODEL, PATH, SETS
from loopscale.cli.sentence import tell, warn
from loopscale.cli.train_options import asked_config, check_options, free_folder, print_keys, resumed_sets
from loopscale.factory import CONTRACT, peek

if TYPE_CHECKING:
    from loopscale.train import Outcome, Profile, World


@click.command(epilog=CONTRACT)
@click.argument("config", required=False, type=PATH)
@MODEL
@click.option("--rule", help="A rule of the table, or yours: file.py:RULE, whose numbers the config keeps.")
@SETS
@click.option("--from", "tuned", type=PATH, metavar="TOML", help="tuned.toml of loopscale tune.")
@click.option("--init-from", metavar="DIR", help="Begin with the weights of a different run of the same shapes.")
@click.option("--out", type=PATH, help="Folder of the run; default: the next free runs/NAME.")
@click.option("--resume", type=PATH, metavar="DIR", help="Continue the run in DIR exactly.")
@click.option("--continue", "again", is_flag=True, help="Continue the run in --out when there is one: safe to repeat.")
@click.option("--profile", is_flag=True, help="Print where the time went: data, forward by visit, backward, ...")
@JSON
@click.option(
    "--keys", is_flag=True, expose_value=False, is_eager=True, callback=print_keys, help="List all config keys."
)
def command(**given: Any) -> int:
    """Train the model of a CONFIG file (TOML), or your own with --model, or continue a run with --resume.

    On several devices: torchrun --nproc-per-node 8 -m loopscale train CONFIG. Rank 0 alone writes and prints.

    Writes metrics, checkpoints and provenance into a run folder. Ctrl-C and SIGTERM finish the step and write a
    checkpoint. More steps for a finished run: --resume DIR --set train.steps=N.

    Exit codes: 0 finished, 1 the loss became non-finite, 2 a mistake to mend, 130 Ctrl-C, 143 SIGTERM.
    """
    check_options(given)
    if given["model"] is not None:
        peek(given["model"], rule=False)
    from loopscale.train import Profile, joined
    from loopscale.train.world import AgreedError

    profile = Profile() if given["profile"] else None
    try:
        with joined() as world:
            outcome = _train(given, world, profile)
            if world.main:
                _show(outcome, given["as_json"])
                if profile is not None:
                    click.echo(profile.table(), err=given["as_json"])
    except AgreedError:
        return 2  # rank 0 says it
    return outcome.exit_code


def _train(given: dict[str, Any], world: World, profile: Profile | None) -> Outcome:
    from loopscale.cli.display import Display
    from loopscale.train import open_run, resume_run, train_run

    run: Path | None = given["resume"]
    with world.together():
        config = asked_config(given, warn if world.main else lambda sentence: None) if run is None else None
        if config is not None and given["again"] and (given["out"] / "config.toml").exists():
            open_run(given["out"]).check_same(config)
    out = Path(world.of_main(str(given["out"] or free_folder(given))))
    if given["again"] and world.of_main("yes" if (out / "config.toml").exists() else "") == "yes":
        run = out
    with Display() if world.main else nullcontext(lambda line, steps: None) as on_step:
        if run is None:
            assert config is not None
            return train_run(config, out, on_step=on_step, warn=warn, world=world, profile=profile)
        with world.together():
            sets = resumed_sets(run, given)
        return resume_run(run, sets, on_step=on_step, warn=warn, world=world, profile=profile)


def _show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(outcome)))
    if outcome.status != "finished":
        tell(outcome.sentence)
    elif not as_json:
        losses = {"train loss": outcome.loss, "validation loss": outcome.val_loss}
        said = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
        click.echo(", ".join([f"{outcome.sentence} in {outcome.seconds:.0f} s", *said]))
        click.echo(f"run: {outcome.run}")
