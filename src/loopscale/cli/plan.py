"""`loopscale plan`: what a training will need, before anything is rented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.options import JSON, PATH, SETS, finish
from loopscale.errors import UserError
from loopscale.factory import CONTRACT, own_sizes, peek
from loopscale.planning import Machine, Plan, Work, people, plan, study_hours

if TYPE_CHECKING:
    from loopscale.study import UserCode
    from loopscale.train import TrainConfig

UNITS = {"": 1e9, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@click.command(epilog=CONTRACT)
@click.argument("config", required=False, type=PATH)
@click.option("--model", metavar="PLACE", help="Your model, counted as it is: file.py:make_model; see below.")
@SETS
@click.option("--gpus", "--devices", "devices", type=int, default=8, show_default=True, help="How many devices.")
@click.option("--memory", default="80GB", show_default=True, help="Of one device; a number alone is in GB.")
@click.option(
    "--peak-tflops", type=float, default=989.0, show_default=True, help="Of one device (H100, H200: 989 in bf16)."
)
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Share of the peak that is reached.")
@click.option("--price", type=float, help="Dollars for one device and hour.")
@click.option("--tuning", is_flag=True, help="Add the price of loopscale tune CONFIG, with its defaults.")
@click.option("--exponent", is_flag=True, help="Add the price of loopscale exponent CONFIG, with its defaults.")
@click.option("--here", is_flag=True, help="With these: time a few steps of their trials here, and add CPU seconds.")
@JSON
def command(
    config: Path | None,
    model: str | None,
    sets: tuple[str, ...],
    tuning: bool,
    exponent: bool,
    here: bool,
    as_json: bool,
    **of_machine: Any,
) -> int:
    """Predict parameters, FLOPs, memory, hours and dollars of the training in CONFIG, of any size.

    A model of yours is built where nothing is allocated, and counted over a forward and a backward pass.

    Exit codes: 0 it fits, 1 it does not (and what would help), 2 a mistake to mend.
    """
    if config is None and model is None:
        raise UserError("name a config, or your model: loopscale plan config.toml --model file.py:make_model")
    if here and not (tuning or exponent):
        raise UserError("--here times trials of a tuning or an exponent study: add --tuning or --exponent")
    if model is not None:
        peek(model, rule=False)
    from loopscale.train import load_config, make_config

    size, peak = _bytes(of_machine.pop("memory")), of_machine.pop("peak_tflops") * 1e12
    machine = Machine(**of_machine, memory=size, peak=peak)
    named = sets if model is None else (*sets, f"model.factory={json.dumps(model)}")
    values = make_config({}, (*own_sizes(model), *named)) if config is None else load_config(config, named)
    if model is None and values.model.factory is not None:
        factory = values.model.factory
        raise UserError(f"{config} trains {factory}, code that runs only where you name it: add --model {factory}")
    batch, parts = values.data.batch_size, values.train.accumulate
    if batch % (machine.devices * parts):
        raise UserError(
            f"data.batch_size = {batch} cannot be dealt out to {machine.devices} devices x {parts} accumulated parts: "
            f"use a multiple of {machine.devices * parts}"
        )
    answer = plan(_work(values), machine)
    price_of = {"tuning": _tuning(values, machine, here)} if tuning else {}
    price_of |= {"exponent": _exponent(values, machine, here)} if exponent else {}
    lines = [f"model       {_sizes(values, answer.unit)}", _text(answer, machine)]
    lines += [line for name, row in price_of.items() for line in _said(name, row, machine.price)]
    finish({**answer.to_dict(), **price_of}, "\n".join(lines), as_json)
    return 0 if answer.fits else 1


def _work(config: TrainConfig) -> Work:
    """Give what the planner prices: a shape where a formula knows the model, else what is counted on it."""
    if config.model.factory is None:
        from loopscale.train.needs import shape_of

        return shape_of(config)
    from loopscale.train.counted import counted

    return counted(config)


def _tuning(config: TrainConfig, machine: Machine, here: bool) -> dict[str, Any]:
    """Price `loopscale tune CONFIG`: its trials on the proxy, and at most as many again for more seeds of the best."""
    from loopscale.cli.tune import sizes
    from loopscale.tune import TuneSettings

    proxy, target = sizes(config, None, None)
    settings = TuneSettings(config.using(None), proxy, target, user_code=_code(config))
    trial = settings.config(proxy, {})
    return _priced(str(proxy), config, [(trial, 2 * settings.trials, trial, 1.0)], machine, here)


def _exponent(config: TrainConfig, machine: Machine, here: bool) -> dict[str, Any]:
    """Price `loopscale exponent CONFIG`: the trials of a study whose optima lie in the middle of its grid."""
    from collections import Counter

    from loopscale.exponent import ExponentPlan
    from loopscale.train.needs import default_vocabulary

    words = config.model.vocab_size or default_vocabulary(config)  # the data need not be there yet
    plan = ExponentPlan(config.using(None).updated(model={"vocab_size": words}), user_code=_code(config))
    kinds = Counter((cell.loops, cell.longer) for cell in plan.expected())
    at = {kind: plan.config(plan.sample(*kind)) for kind in kinds}
    trials = [(at[kind], count, plan.config(plan.sample(kind[0])), kind[1]) for kind, count in kinds.items()]
    return _priced(f"N = {', '.join(map(str, plan.loops))}", config, trials, machine, here)


def _code(config: TrainConfig) -> UserCode | None:
    from loopscale.study import UserCode

    return None if config.model.factory is None else UserCode.at(config.model.factory)


def _priced(
    size: str,
    config: TrainConfig,
    trials: list[tuple[TrainConfig, int, TrainConfig, float]],
    machine: Machine,
    here: bool,
) -> dict[str, Any]:
    """Price trials: each config, how many of it, and the one to time `here` with how many times its steps are trained."""
    from loopscale.study import trial_seconds

    works = [work for trial, count, _, _ in trials for work in [_work(trial.using(config.model.factory))] * count]
    row: dict[str, Any] = {"trials": len(works), "size": size, "device_hours": study_hours(works, machine)}
    if here:
        code, timed = _code(config), dict[int, float]()
        for _, _, sample, _ in trials:
            if sample.model.loops not in timed:
                timed[sample.model.loops] = trial_seconds(sample, code)
        row["cpu_seconds"] = sum(count * timed[one.model.loops] * longer for _, count, one, longer in trials)
    return row


def _said(name: str, row: dict[str, Any], price: float | None) -> list[str]:
    """Say what a study costs, and how long it takes on this machine where that was timed."""
    here = "at this share of the peak, which a small proxy does not reach: --here times it"
    if "cpu_seconds" in row:
        here = f"on this machine about {people(row['cpu_seconds'])} CPU seconds, by some steps"
    cost = f"{row['trials']} trials at {row['size']}: {_hours(row['device_hours'], price)}"
    return [f"{name:<12}{cost}", f"{'':<12}{here}"]


def _sizes(config: TrainConfig, unit: str) -> str:
    """Say what is priced: a key left out has a default, and a default loop is not the reader's."""
    model, data = config.model, config.data
    loop = f"N = {model.loops}, L = {model.layers}, d = {model.width}"
    rows = f"{data.batch_size} sequences of {data.context} tokens" if unit == "token" else f"{data.batch_size} {unit}s"
    return f"{loop}, {rows} a step, {config.train.steps:,} steps"


def _bytes(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise UserError(f"--memory {text!r} is no size: write 80GB or 40GiB")
    return float(found[1]) * UNITS[found[2].upper()]


def _hours(hours: float, price: float | None) -> str:
    dollars = "" if price is None else f", {price * hours:,.2f} dollars"
    return f"{_time(hours)} of GPU time{dollars}" if hours < 0.01 else f"{people(hours)} GPU hours{dollars}"


def _time(hours: float) -> str:
    """Write a time for people.

    >>> _time(30), _time(0.002), _time(1e-9)
    ('30 hours', '7.2 seconds', 'less than a second')
    """
    if hours >= 0.01:
        return f"{people(hours)} hours"
    return f"{people(hours * 3600)} seconds" if hours * 3600 >= 1 else "less than a second"


def _size(count: float) -> str:
    """Write bytes for people.

    >>> _size(1.5e9), _size(2.36e5)
    ('   1.500 GB', '   0.236 MB')
    """
    return f"{count / 1e9:8.3f} GB" if count >= 1e8 else f"{count / 1e6:8.3f} MB"


def _text(answer: Plan, machine: Machine) -> str:
    unit = answer.unit

    def work(flops: float) -> str:
        return f"{people(flops, 'k M G T P')}FLOP"

    flops, used, devices = answer.flops_per_token, answer.memory, machine.devices
    lines = ["parameters  " + ", ".join(f"{name} {people(count)}" for name, count in answer.parameters.items())]
    again = f" ({work(flops['executed'])} with recomputation)" if flops["executed"] != flops["model"] else ""
    lines.append(f"work        {work(flops['model'])} a {unit}{again}")
    for name in ("weights", "gradients", "optimizer", "gathered", "activations", "logits", "runtime"):
        if part := getattr(used, name):
            lines.append(f"memory      {name:<12} {_size(part)}")
    less = answer.memory_recomputed
    recomputed = "" if less is None else f" (every visit recomputed: {_size(less.total).strip()})"
    lines.append(f"memory      {'total':<12} {_size(used.total)}{recomputed}")
    rate, tokens = people(answer.tokens_per_second), people(answer.tokens)
    lines.append(f"speed       {rate} {unit}s/s on {devices} devices, {tokens} {unit}s in all")
    lines.append(f"assumed     {machine.mfu:.0%} of a peak of {machine.peak / 1e12:g} TFLOP/s (--mfu, --peak-tflops)")
    lines.append(f"time        {_time(answer.hours)}, {_hours(answer.hours * devices, machine.price)}")
    return "\n".join([*lines, *(f"caution     {caution}" for caution in answer.cautions), answer.sentence])
