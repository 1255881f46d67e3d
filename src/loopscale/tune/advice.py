"""Say numbers in as many digits as their interval supports, and what to do next, with the command that does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopscale.records import Size
from loopscale.study import command_of, train_command
from loopscale.tune.settings import TuneSettings


def spoken(value: float, interval: Sequence[float] | None = None) -> str:
    """Return a value and its 95 % interval, rounded to what the interval supports.

    >>> spoken(0.006473, [0.006142, 0.006754])
    '0.0065 [0.0061, 0.0068]'
    >>> spoken(0.006473, [0.00646, 0.00648])
    '0.00647 [0.00646, 0.00648]'
    >>> spoken(0.006473)
    '0.0065'
    """
    if interval is None:
        return f"{value:.2g}"
    low, high = interval
    width = (high - low) / max(abs(value), 1e-300)
    digits = 2 if width >= 0.03 else min(4, -math.floor(math.log10(max(width, 1e-9))))
    if f"{low:.{digits}g}" == f"{high:.{digits}g}":
        return f"{value:.{digits}g} (to these digits)"
    return f"{value:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def nats(regret: float, interval: Sequence[float] | None) -> str:
    """Return a regret with its interval, or why there is none.

    >>> nats(0.0012, [0.0004, 0.003]), nats(0.0012, None)
    ('0.0012 nats [0.0004, 0.0030]', '0.0012 nats, no interval as no noise is known')
    """
    if interval is None:
        return f"{regret:.4f} nats, no interval as no noise is known"
    low, high = (f"{end:.4f}" for end in interval)
    return f"{regret:.4f} nats" + (" (to these digits)" if low == high else f" [{low}, {high}]")


def in_seed_noise(regret: float, seed_noise: float | None) -> str:
    """Return a regret in units of the seed noise.

    >>> in_seed_noise(0.0012, 0.01), in_seed_noise(0.0012, None)
    ('0.12 of the seed noise', 'the seed noise is not known')
    """
    if seed_noise is None:
        return "the seed noise is not known"
    return f"{regret / seed_noise:.2g} of the seed noise" if seed_noise else "seeds change nothing"


PLACES = {
    "lr": "optim.lr",
    "outer_lr": "optim.outer_lr",
    "weight_decay": "optim.weight_decay",
    "warmup": "optim.warmup",
    "strength": "model.strength",
}


def after_tuning(folder: Path, settings: TuneSettings, plan: dict[str, Any]) -> str:
    """Say what to do about an optimum at the end of its range, candidates not told apart, or a surface without minimum."""
    found, seeds = plan["proxy"], settings.seeds
    edges = [name for name in found["edges"] if name in PLACES]
    if edges:
        sets = [word for name in edges for word in ("--set", f"{PLACES[name]}={found['values'][name]:g}")]
        return f"Tune again from there: {_anew(folder, settings, settings.proxy, 'again', *sets)}"
    if seeds == 1 or found["tied"]:
        why = "One seed tells nothing from luck" if seeds == 1 else "More seeds tell the candidates apart"
        return f"{why}: {_on(folder, settings, '--seeds', max(3, 2 * seeds))}"
    if not any(found["intervals"].values()):
        return f"More points give intervals: {_on(folder, settings, '--trials', 2 * settings.trials)}"
    return ""


def about_looping(folder: Path, plan: dict[str, Any]) -> str:
    """Say how to learn whether looping pays, where the tuning did not measure it, and its price."""
    settings = TuneSettings.from_json(plan["settings"])
    if "pays" in plan or "pays_share" not in plan["cost"]:
        return ""
    price = f"{plan['cost']['pays_share']:.1%} of a sweep at the target"
    command = _on(folder, settings, "--pays", settings.seeds)
    return f"whether looping pays was not measured ({price}): {command}"


def after_verifying(folder: Path, settings: TuneSettings, found: dict[str, Any], *more: str, share: float = 0.0) -> str:
    """Say what to do about a plan that holds, fails or is not decided.

    `more` are the options for more seeds, `share` what these cost of a sweep at the target.
    """
    mine = [row for row in (*found["local"], *found["target"]) if row["rule"] == settings.rule]
    flat = [row["label"] for row in found["local"] if row["rule"] == settings.rule and row.get("inside") is False]
    if found["verdict"] == "fails" or (found["verdict"] == "undecided" and flat):
        lost = [row for row in mine if row["verdict"] == "fails" or row.get("inside") is False]
        values = " and ".join(sorted({row["along"] for row in lost}))
        why = f"{values} did not carry"
        if found["verdict"] == "undecided":
            why = f"no minimum lies inside the octave on either side at {flat[0]}"
        nearer = _nearer(settings, {row["axis"] for row in lost})
        return f"Tune nearer to the target, {why}: {_anew(folder, settings, nearer, 'nearer')}"
    if found["verdict"] != "undecided":
        train = _train(folder, settings)
        return train and f"Train it: {train}"
    price = ", at more than a sweep at the target costs" if share >= 1 else ""
    again = _verify(folder, settings, *more, "--share", f"{share:g}")
    return f"Repeat it with more seeds{price}, the trials that ran are kept: {again}"


def if_bounded(folder: Path, settings: TuneSettings, found: dict[str, Any]) -> list[str]:
    """Give the command that trains a plan that is not decided, where what it loses at most is known."""
    most, train = found["bound"], _train(folder, settings)
    if found["verdict"] != "undecided" or most is None or not train:
        return []
    return [f"Train it if {most:.2g} nats are nothing to you: {train}"]


def _train(folder: Path, settings: TuneSettings) -> str:
    """Give the command that trains the plan; "" for an objective, whose training is the user's own."""
    code = settings.user_code
    if code is not None and code.kind == "objective":
        return ""
    return train_command(None if code is None else code.place, folder / "tuned.toml")


def _nearer(settings: TuneSettings, axes: set[str]) -> Size:
    """Return a proxy of twice the size on the axes that failed (all that grow where none says), at most the target's."""
    proxy, target = settings.proxy, settings.target
    grow = {axis for axis in ("loops", "layers", "width") if getattr(target, axis) > getattr(proxy, axis)}
    return proxy.replace(
        **{axis: min(getattr(target, axis), 2 * getattr(proxy, axis)) for axis in (axes & grow) or grow}
    )


def _on(folder: Path, settings: TuneSettings, *options: object) -> str:
    return command_of("tune", settings.user_code, "--out", folder, *options)


def _verify(folder: Path, settings: TuneSettings, *options: object) -> str:
    return command_of("verify", settings.user_code, folder, *options)


def _anew(folder: Path, settings: TuneSettings, proxy: Size, name: str, *sets: str) -> str:
    """Return the command that tunes the same target from another proxy or start, in a folder beside this one."""
    size = ",".join(f"{axis}={getattr(proxy, axis)}" for axis in ("loops", "layers", "width", "steps", "batch"))
    words = (
        "--proxy",
        size,
        "--tune",
        ",".join(settings.tuned),
        *sets,
        "--out",
        folder.with_name(f"{folder.name}-{name}"),
    )
    return command_of("tune", settings.user_code, folder / "tuned.toml", *words)
