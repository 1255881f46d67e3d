"""`loopscale train`: begin, continue or extend a run of the house model or of your own."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.errors import UserError
from loopscale.factory import CONTRACT, peek

if TYPE_CHECKING:
    from loopscale.train import Outcome, Profile, TrainConfig, World


def _print_keys(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from loopscale.cli.keys import table

        click.echo(table())
        context.exit()


@click.command(epilog=CONTRACT)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="PLACE", help="Your own model: file.py:make_model, a factory; see below.")
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a value of the config.")
@click.option("--from", "tuned", type=click.Path(path_type=Path), metavar="TOML", help="tuned.toml of loopscale tune.")
@click.option("--init-from", metavar="DIR", help="Begin with the weights of a different run of the same shapes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; default: the next free runs/NAME.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue the run in DIR exactly.")
@click.option("--continue", "again", is_flag=True, help="Continue the run in --out when there is one: safe to repeat.")
@click.option("--profile", is_flag=True, help="Print where the time went: data, forward by visit, backward, ...")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option(
    "--keys", is_flag=True, expose_value=False, is_eager=True, callback=_print_keys, help="List all config keys."
)
def command(**given: Any) -> int:
    """Train the model of a CONFIG file (TOML), or your own with --model, or continue a run with --resume.

    On several devices: torchrun --nproc-per-node 8 -m loopscale train CONFIG. Rank 0 alone writes and prints.

    Writes metrics, checkpoints and provenance into a run folder. Ctrl-C and SIGTERM finish the step and write a
    checkpoint. More steps for a finished run: --resume DIR --set train.steps=N.

    Exit codes: 0 finished, 1 the loss became non-finite, 2 a mistake to mend, 130 Ctrl-C, 143 SIGTERM.
    """
    _check_options(given)
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


def _check_options(given: dict[str, Any]) -> None:
    new = given["config"] is not None or (given["model"] is not None and given["resume"] is None)
    if new == (given["resume"] is not None):
        raise UserError(
            "give either a config file (or --model file.py:make_model) or --resume DIR: loopscale train config.toml"
        )
    if given["resume"] is not None and any(given[name] is not None for name in ("out", "tuned", "init_from")):
        raise UserError("--resume continues a run exactly, so it takes no --from, --init-from or --out: leave them out")
    if given["again"] and given["out"] is None:
        raise UserError("--continue needs the folder of the run: add --out DIR")


def _train(given: dict[str, Any], world: World, profile: Profile | None) -> Outcome:
    from loopscale.cli.progress import progress, warn
    from loopscale.train import open_run, resume_run, train_run

    run: Path | None = given["resume"]
    with world.together():
        config = _config(given, warn if world.main else lambda sentence: None) if run is None else None
        if config is not None and given["again"] and (given["out"] / "config.toml").exists():
            open_run(given["out"]).check_same(config)
    name = (given["config"].stem if given["config"] else _name(given["model"])) if run is None else ""
    out = Path(world.of_main(str(given["out"] or _free(name))))
    if given["again"] and world.of_main("yes" if (out / "config.toml").exists() else "") == "yes":
        run = out
    with progress() if world.main else nullcontext(lambda line, steps: None) as on_step:
        if run is None:
            assert config is not None
            return train_run(config, out, on_step=on_step, warn=warn, world=world, profile=profile)
        sets = given["sets"] if given["resume"] is not None else ()
        if given["model"] is not None:
            sets = (*sets, f"model.factory={json.dumps(given['model'])}")
        return resume_run(run, sets, on_step=on_step, warn=warn, world=world, profile=profile)


def _config(given: dict[str, Any], warn: Any) -> TrainConfig:
    """Read the config, or take that of tuned.toml, which is whole; put the tuned values and the options on top."""
    from loopscale.train import load_config, make_config, read_toml, with_tuned

    sets = list(given["sets"])
    if given["model"] is not None:
        sets.append(f"model.factory={json.dumps(given['model'])}")
    if given["init_from"] is not None:
        sets.append(f"train.init_from={json.dumps(given['init_from'])}")
    if given["config"] is None:
        return make_config({} if given["tuned"] is None else read_toml(given["tuned"]), sets)
    config = load_config(given["config"], sets)
    if given["tuned"] is not None:
        config, cautions = with_tuned(config, given["tuned"])
        for caution in cautions:
            warn(caution)
    return config


def _name(place: str) -> str:
    """Name a run of a user model after its file or module."""
    return place.rpartition(":")[0].removesuffix(".py").replace("/", ".").rpartition(".")[2]


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
