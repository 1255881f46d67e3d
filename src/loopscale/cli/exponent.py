"""`loopscale exponent`: measure how fast the best eps falls with N, and what each rule loses when it carries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.options import COUNTS, PATH, list_of, parse_axes, rate
from loopscale.cli.study_options import Asked, asked, tell_again
from loopscale.errors import UserError
from loopscale.factory import CONTRACT

if TYPE_CHECKING:
    from loopscale.train import TrainConfig


@click.command(epilog=CONTRACT)
@click.argument("config", required=False, type=PATH)
@click.option("--loops", callback=COUNTS, help="Numbers of loops; default 2,4,8.")
@click.option("--target", metavar="loops=N", help="Where the eps is wanted, such as loops=64.")
@click.option("--seeds", type=int, help="Seeds of the grid; default 4.")
@click.option("--fresh", type=int, help="Fresh seeds that compare the ways to carry; default 8.")
@click.option(
    "--strengths", callback=list_of(rate, "numbers such as 0.5 or 2^-1"), help="Where the grid begins, at least three."
)
@click.option("--lrs", callback=list_of(rate, "rates such as 2^-6 or 0.01"), help="Hidden rates where the grid begins.")
@click.option(
    "--outer-rate", type=float, help="Rate of embedding and readout; default: found first, at the smallest N."
)
@click.option(
    "--carry",
    callback=list_of(str, "rules or powers of N"),
    help="Ways to carry: pre-norm rules, or powers of N; default looped,0.75,sqrt,none,depth-mup.",
)
@asked("model", "data", "set", "open", out="Folder; default runs/exponent-NAME. Continues if it exists.")
def command(asked: Asked, config: Path | None, target: str | None, **axes: Any) -> None:
    """Measure a and g of your model: best eps falls as N^-a, best hidden rate as N^-g, each with a 95 % interval.

    One grid over eps and hidden rate at a few N serves every pre-norm rule, since each rule is a line through it.
    Fresh seeds then say what each rule loses when it carries the optimum of the smallest N to the largest. Without
    CONFIG (TOML) the model and data are those of `loopscale transfer --preset demo`. Stop it anywhere and start it
    again: finished trials are kept. With --out alone the study in that folder goes on, with more of what you name.
    """
    from loopscale.cli.display import watching

    code = asked.code()  # a mistake in its arguments is told before the slow imports
    aim = None if target is None else _target(target)
    from loopscale.exponent import ExponentPlan, ExponentStudy, run_exponent
    from loopscale.report import ExponentPage, write_exponent_report
    from loopscale.study import check_named

    given = {name: value for name, value in {**axes, "target": aim}.items() if value is not None}
    name = config.stem if config is not None else None if asked.model else "demo"
    folder = asked.folder("exponent", name)
    if config is None and not asked.anew and (folder / "exponent.json").exists():
        plan = replace(ExponentStudy.load(folder).plan, **given)
        check_named(folder, plan.user_code, code)
    else:
        plan = ExponentPlan(base=_base(config, asked.overrides(), code is not None), user_code=code, **given)
    plan, runner = asked.placed(plan, plan.base, folder)
    with watching(f"exponent of {asked.model or name}; its page is {folder / 'report.html'}") as observer:
        result = run_exponent(plan, folder, executor=runner, observer=observer, page=ExponentPage)
    tell_again(result.provenance)
    said = [result.sentence, *result.says, *([result.next] if result.next else [])]
    asked.answer(result.model_dump(mode="json"), said, write_exponent_report(folder))


def _base(config: Path | None, sets: tuple[str, ...], user: bool) -> TrainConfig:
    """Return the config of the trials: the file's, else the demo's."""
    from loopscale.train import load_config
    from loopscale.transfer import get_preset

    if config is None:
        return get_preset("demo").base(sets, user)
    return load_config(config, sets, user=user)


def _target(text: str) -> int:
    axes = parse_axes(text, "--target")
    if set(axes) != {"loops"}:
        raise UserError(f"--target of an exponent is a number of loops, got {text!r}: --target loops=64")
    return axes["loops"]
