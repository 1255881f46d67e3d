"""`loopscale diagnose`: what is wrong with a looped model, where, why, and what to try."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from loopscale.cli.diagnose_target import Target

_LEVELS = ("info", "warning", "error", "never")


@click.command()
@click.argument("target", required=False)
@click.option(
    "--model",
    help="The same as TARGET: file.py:make_model; with a run folder, the code of the user model that it trained.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@click.option(
    "--fail-on",
    type=click.Choice(_LEVELS),
    default="warning",
    show_default=True,
    help="Exit with 1 at a finding of this severity or worse.",
)
@click.option(
    "--loops", type=click.IntRange(min=1), help="Number of loops to build the model with: the factory's `loops`."
)
@click.option(
    "--loops-arg",
    help="What sets the number of loops: an argument of forward, or an attribute like config.n; with --loops, the "
    "factory's argument.",
)
@click.option("--training", is_flag=True, help="Run the model in training mode: dropout, sampled loops, BatchNorm.")
@click.option("--loops-range", help="Vary the loops between these, for example 1:32, and report the output's change.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="With --loops-range: measure the loss on this too. A text file is read as bytes, a .pt file as tokens.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A state dict to load into the model (no pickled code)."
)
@click.option(
    "--fix", is_flag=True, help="Attach the remedy, diagnose again, and print both; exit by the second diagnosis."
)
@click.option("--compare", help="Diagnose a second model, run or folder too, and say what differs.")
@click.option("--trust-remote-code", is_flag=True, help="Run the code that a Hugging Face folder brings with it.")
@click.option("--out", type=click.Path(path_type=Path), help="Write diagnosis.json and report.html into this folder.")
def command(
    target: str | None,
    model: str | None,
    as_json: bool,
    fail_on: str,
    loops: int | None,
    loops_arg: str | None,
    loops_range: str | None,
    data: Path | None,
    weights: Path | None,
    fix: bool,
    training: bool,
    compare: str | None,
    trust_remote_code: bool,
    out: Path | None,
) -> int:
    """Diagnose the looped model TARGET.

    TARGET is package.module:factory, file.py:factory, a run folder of ours, a local Hugging Face folder, or hf://NAME
    (the only form that uses the network). A factory is called without arguments (but --loops) at torch's seed 0, so that
    the same command prints the same numbers, and gives a module, or a module and a batch to run it on; a module is taken
    as it is.
    """
    span = _span(loops_range)
    if data is not None and span is None:
        raise UserError("--data measures the loss over a range of loops: add --loops-range, for example 1:32")
    run = target is not None and (Path(target) / "config.toml").is_file()
    if (target is None) == (model is None) and not (run and model):
        raise UserError("name one model: loopscale diagnose file.py:make_model")
    target, code = target or str(model), model if run else None
    given = {} if loops is None else {loops_arg or "loops": loops}
    built, batch, factory = _load(target, given, trust_remote_code, code)
    if weights is not None:
        _load_weights(built, weights)
        factory = None  # it makes others
    from loopscale.diagnosis import diagnose

    batches = _batches(data, built) if data is not None else None
    options: dict[str, Any] = {"loops_arg": loops_arg if loops is None else None, "loops_range": span, "data": batches}
    options["training"] = training
    found = diagnose(built, batch, factory=factory, **options)
    if fix:
        click.echo(found.text() + "\n", err=as_json)
        handle = _in_one_sentence(lambda: found.apply(built, batch), "the remedy cannot be attached")
        click.echo(f"{handle}\n", err=as_json)
        found = diagnose(built, batch, **options)
    if compare is not None:
        other, other_batch, factory = _load(compare, given, trust_remote_code, code)
        second = diagnose(other, other_batch, factory=factory, **options)
        changes = differences(found, second)
        click.echo(json.dumps(changes, indent=1) if as_json else _spelt(target, compare, changes))
        return 1 if fail_on != "never" and second.at_least(fail_on) else 0
    if out is not None:
        _write(out, target, found)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else found.text())
    return 1 if fail_on != "never" and found.at_least(fail_on) else 0


def differences(first: Any, second: Any) -> dict[str, list[Any]]:
    """Return every field that differs between two diagnoses, with both values; findings by their codes."""
    told = [{**found.to_json(), "findings": sorted(found.codes)} for found in (first, second)]
    skip = ("details", "verdict", "schema", "loops_found")
    made = {name: [told[0][name], told[1][name]] for name in told[0] if name not in skip}
    return {name: pair for name, pair in made.items() if pair[0] != pair[1]}


def _spelt(first: str, second: str, changes: dict[str, list[Any]]) -> str:
    if not changes:
        return f"{first} and {second}: the same in every field"
    lines = [f"{name:<18}{_word(pair[0])} -> {_word(pair[1])}" for name, pair in changes.items()]
    return "\n".join([f"{first} -> {second}", *lines])


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(out: Path, target: str, found: Any) -> None:
    from loopscale.files import write_json, write_text
    from loopscale.report.diagnosis_page import page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise UserError(f"cannot make the folder {out} ({cause.strerror}): name another with --out") from None
    write_json(out / "diagnosis.json", found.to_json())
    write_text(out / "report.html", page(target, found))


def _span(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and int(low) and int(high)):
        raise UserError(f"--loops-range {text!r} is not of the form LOW:HIGH, both at least 1, for example 1:32")
    if int(low) > int(high):
        raise UserError(f"--loops-range {text!r} goes down, LOW must be smaller than HIGH: give {high}:{low}")
    return int(low), int(high)


def _load(target: str, given: dict[str, int], trusted: bool, code: str | None) -> Target:
    from loopscale.cli.diagnose_target import load_target

    return load_target(target, given, trusted, code)


def _batches(path: Path, model: nn.Module) -> list[Any]:
    """Return the file as batches of tokens; raises `UserError` when it is none."""
    import torch

    from loopscale.cli.diagnose_target import read_tensor
    from loopscale.diagnosis.looprange import byte_batches

    if not path.is_file():
        raise UserError(f"there is no file {path}: name a text file or a .pt file of tokens with --data")
    if path.suffix == ".pt":
        return list(read_tensor(path).split(4))
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    return list(byte_batches(path.read_bytes(), max(sizes, default=0)))


def _load_weights(model: nn.Module, path: Path) -> None:
    from loopscale.cli.diagnose_target import read_weights

    _in_one_sentence(lambda: model.load_state_dict(read_weights(path)), f"the weights in {path} do not fit the model")


def _in_one_sentence(action: Callable[[], Any], what: str) -> Any:
    try:
        return action()
    except UserError:
        raise
    except Exception as cause:
        line = (str(cause).strip().splitlines() or [""])[-1].strip()[:160]
        raise UserError(f"{what}: {line}") from None
