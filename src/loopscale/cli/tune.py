"""`loopscale tune`: find the rate and strength on a small proxy, and carry them to a target."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.options import PATH, finish, parse_axes, parse_seconds, spelt_rule
from loopscale.cli.study_options import Asked, asked, tell_again
from loopscale.errors import UserError, between
from loopscale.factory import CONTRACT, own_sizes

if TYPE_CHECKING:
    from loopscale.train import TrainConfig
    from loopscale.tune import Size


@click.command(epilog=CONTRACT)
@click.argument("config", required=False, type=PATH)
@click.option("--target", metavar="AXES", help="Such as loops=32,layers=8,width=1024; default: the config's own size.")
@click.option(
    "--proxy",
    metavar="AXES",
    help="Where to tune; default: one loop; without --target also at most 2 layers and width 128.",
)
@click.option(
    "--budget", help="Time to spend, start-up included, such as 90s, 10m, 2h; default: as long as the trials take."
)
@click.option(
    "--trials", type=int, help="Points to explore, with one seed each; default: 16, 8 more a value beyond two."
)
@click.option("--seeds", type=int, help="Seeds that the best points get; default 3.")
@click.option(
    "--tune",
    "tuned",
    help="Default: lr,strength,outer_lr (of an objective: lr,strength); also: weight_decay, warmup, batch.",
)
@click.option(
    "--pays",
    type=click.IntRange(0, 1000),
    metavar="SEEDS",
    help="Does looping pay: seeds that train the target's loops beside one loop, at the proxy's layers and width; default: "
    "as many of --seeds as stay within a tenth of a sweep at the target, with --budget none.",
)
@click.option("--rule", help="The rule that carries the values, or file.py:RULE; default: the config's.")
@click.option(
    "--storage", help="A database that shows the trials to optuna-dashboard: sqlite:///trials.db, postgresql://..."
)
@asked("model", "objective", "set", out="Folder; default runs/tune-NAME. Continues if it exists.")
def command(
    asked: Asked,
    config: Path | None,
    target: str | None,
    proxy: str | None,
    budget: str | None,
    trials: int | None,
    seeds: int | None,
    tuned: str | None,
    pays: int | None,
    rule: str | None,
    storage: str | None,
) -> None:
    """Tune learning rate and strength of CONFIG (TOML) on a small proxy, for a larger target.

    Without CONFIG a model of yours is tuned at its factory's layers and width, and else at the defaults of `loopscale
    train --keys`; --set changes both.
    Writes tuned.toml and plan.json: `loopscale train target.toml --from tuned.toml`, `loopscale verify FOLDER`.
    Stop it anywhere and start it again: finished trials are kept. Without CONFIG the tuning in --out goes on, with more
    --trials, --seeds, --pays or a larger --target.
    """
    started = time.monotonic()
    from loopscale.cli.display import watching

    code, out = asked.code(), asked.out  # a mistake in its arguments is told before the slow imports
    from loopscale.report import write_tune_report
    from loopscale.tune import Budget, TuneSettings, kept_settings, tune
    from loopscale.tune.settings import MOST_TRIALS

    if trials is not None:
        between("trials", trials, 3, MOST_TRIALS)
    if config is None and out is not None and (out / "tune.json").exists():
        _refuse_others(out, {"--proxy": proxy, "--tune": tuned, "--rule": rule, "--set": asked.sets})
        folder, settings = out, kept_settings(out, code)
        larger = None if target is None else settings.target.replace(**parse_axes(target, "--target"))
        more: dict[str, Any] = {"target": larger, "trials": trials, "seeds": seeds}
        settings = replace(settings, **{name: value for name, value in more.items() if value is not None})
    else:
        base = _base(asked, config, rule)
        small, large = sizes(base, proxy, target)
        names = tuple(name.strip() for name in (tuned or "").split(",") if name.strip())
        settings = TuneSettings(base, small, large, names, trials or 0, 3 if seeds is None else seeds, code)
        folder = asked.folder("tune", None if config is None else config.stem)
    limit = Budget(parse_seconds(budget), started=started, pays=pays)
    settings, runner = asked.placed(settings, settings.base, folder)
    with watching(f"tuning at {settings.proxy}") as observer:
        plan = tune(settings, folder, executor=runner, budget=limit, storage=storage, observer=observer)
    tell_again(plan["provenance"], "their records say why, under 'error'")
    finish(plan, _said(plan, folder, write_tune_report(folder)), asked.as_json)


def _base(asked: Asked, config: Path | None, rule: str | None) -> TrainConfig:
    """Read CONFIG, or without one the sizes of the user's own model; raises `UserError` when neither was named."""
    from loopscale.train import load_config, parse_values

    own = asked.model is not None or asked.objective is not None
    if config is None and not own:
        raise UserError(
            "name a config, or your code: loopscale tune config.toml, or --model file.py:make_model; "
            "or with --out the folder of a tuning that goes on"
        )
    rules = asked.overrides(*([f"model.rule={json.dumps(spelt_rule(rule))}"] if rule else []))
    if config is None:
        return parse_values({}, (*own_sizes(asked.model), *rules))
    return load_config(config, rules, user=own)


def _refuse_others(out: Path, fixed: dict[str, Any]) -> None:
    """Raise `UserError` for an option that would make other trials than those of the tuning that goes on."""
    for option, given in fixed.items():
        if given:
            raise UserError(f"{option} makes other trials than those in {out}: name a CONFIG, and a new --out")


def sizes(base: Any, proxy: str | None, target: str | None) -> tuple[Size, Size]:
    """Proxy and target. The config is the proxy when a target is named, the target otherwise."""
    from loopscale.tune import Size

    here = Size.of(base)
    if target is not None:
        large = here.replace(**parse_axes(target, "--target"))
        small = here.replace(loops=1)
    else:
        large = here
        narrow = base.model.head_dim * max(1, 128 // base.model.head_dim)
        small = here.replace(loops=1, layers=min(2, here.layers), width=min(here.width, narrow))
    return (small if proxy is None else small.replace(**parse_axes(proxy, "--proxy"))), large


def _said(plan: dict[str, Any], folder: Path, page: Path) -> str:
    from loopscale.study import UserCode, command_of, train_command
    from loopscale.tune import about_looping

    cost, used = plan["cost"], plan["settings"].get("user_code")
    lines = [
        plan["sentence"],
        *plan["says"],
        f"cost: {cost['share_of_direct']:.1%} of the FLOPs of a sweep of as many trials at the target",
    ]
    lines += [
        f"moved to the target: {row['name']} x {row['factor']:.4g}, {row['why']} ({row['source']})"
        for row in plan["moved"]
    ]
    if "pays" in plan:
        lines.append(plan["pays"]["sentence"])
    lines += [said for said in (about_looping(folder, plan), plan["next"]) if said]
    lines.append(f"page: {page}")
    if "verification" not in plan:
        again = "not verified since, its trials are kept" if (folder / "verify.jsonl").exists() else "not verified yet"
        if options := _between(plan):
            command = command_of("verify", UserCode.from_json(used), folder, *options.split())
            lines.append(f"{again}: {command}")
    tuned = folder / "tuned.toml"
    if used is None:
        lines.append(f"train: loopscale train target.toml --from {tuned}")
    elif used["kind"] == "model":
        lines.append(f"train: {train_command(used['place'], tuned)}")
    else:
        lines.append(f"the values at the target, and every factor of the rule: {tuned}, {folder / 'plan.json'}")
    return "\n".join(lines)


def _between(plan: dict[str, Any]) -> str:
    """Return options of verify: cheap sizes below the target, a share that holds them; "" where no axis grows."""
    from loopscale.tune import SHARE, Checks, share_of

    proxy, target = plan["proxy"], plan["target"]
    sizes: dict[str, list[int]] = {"loops": [], "layers": [], "width": []}
    for axis in sizes:
        low, high = proxy[axis], target[axis]
        if high > low:
            sizes[axis] = sorted({min(high, low * factor) for factor in ((4, 8) if axis == "loops" else (2,))})
    said = [f"--{axis} {','.join(map(str, steps))}" for axis, steps in sizes.items() if steps]
    if not said:
        return ""
    priced = {
        seeds: share_of(plan, Checks(sizes["loops"], sizes["layers"], sizes["width"], seeds=seeds))
        for seeds in range(1, plan["settings"]["seeds"] + 1)
    }
    seeds = max((count for count, share in priced.items() if share <= 0.5), default=1)
    said += [f"--seeds {seeds}"] if seeds > 1 else []
    return " ".join([*said, *([f"--share {priced[seeds]:g}"] if priced[seeds] > SHARE else [])])
