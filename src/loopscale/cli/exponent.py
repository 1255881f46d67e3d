"""`loopscale exponent`: measure how fast the best eps falls with N, and what each rule loses when it carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopscale.cli.executors import Where, placed
from loopscale.cli.transfer import list_of, rate
from loopscale.cli.tune import parse_axes
from loopscale.errors import UserError
from loopscale.factory import CONTRACT

if TYPE_CHECKING:
    from loopscale.records import ExponentResult
    from loopscale.train import TrainConfig


@click.command(epilog=CONTRACT)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="PLACE", help="Your own model: file.py:make_model, a factory; see below.")
@click.option("--loops", callback=list_of(int, "whole numbers"), help="Numbers of loops; default 2,4,8.")
@click.option("--target", metavar="loops=N", help="Where the eps is wanted, such as loops=64.")
@click.option("--seeds", type=int, default=4, show_default=True, help="Seeds of the grid.")
@click.option("--fresh", type=int, default=8, show_default=True, help="Fresh seeds that compare the ways to carry.")
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
@click.option("--data", help="stdlib, synthetic:TASK, a file or folder, or hf:NAME.")
@click.option("--set", "sets", multiple=True, metavar="A.B=C", help="Any value of the config, such as train.steps=300.")
@placed
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder; default runs/exponent-NAME. Continues if it exists."
)
@click.option("--open", "open_page", is_flag=True, help="Open the page when done.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    config: Path | None,
    model: str | None,
    loops: tuple[int, ...] | None,
    target: str | None,
    seeds: int,
    fresh: int,
    strengths: tuple[float, ...] | None,
    lrs: tuple[float, ...] | None,
    outer_rate: float | None,
    carry: tuple[str, ...] | None,
    data: str | None,
    sets: tuple[str, ...],
    where: Where,
    out: Path | None,
    open_page: bool,
    as_json: bool,
) -> None:
    """Measure a and g of your model: best eps falls as N^-a, best hidden rate as N^-g, each with a 95 % interval.

    One grid over eps and hidden rate at a few N serves every pre-norm rule, since each rule is a line through it.
    Fresh seeds then say what each rule loses when it carries the optimum of the smallest N to the largest. Without
    CONFIG (TOML) the model and data are those of `loopscale transfer --preset demo`. Stop it anywhere and start it
    again: finished trials are kept.
    """
    from loopscale.cli.sigterm import ended_by_sigterm
    from loopscale.cli.user_code import checked, find_user_code, study_name, tell, user_sentences
    from loopscale.cli.watching import Watching

    user_code = find_user_code(model, None)  # a mistake in its arguments is told before the slow imports
    aim = None if target is None else _target(target)
    from loopscale.exponent import CARRIED, ExponentPlan, run_exponent
    from loopscale.report import ExponentPage, write_exponent_report
    from loopscale.study import with_precision

    given = where.sets(sets if data is None else (f"data.path={json.dumps(data)}", *sets))
    base = _base(config, given, user_code is not None)
    plan = ExponentPlan(
        base=base,
        loops=loops or (2, 4, 8),
        strengths=strengths,
        lrs=lrs,
        outer_rate=outer_rate,
        seeds=seeds,
        fresh=fresh,
        carry=carry or CARRIED,
        target=aim,
        user_code=user_code,
    )
    name = config.stem if config is not None else "demo" if model is None else study_name(model)
    folder = out or Path("runs") / f"exponent-{name}"

    def largest() -> dict[str, Any]:
        return plan.job_config(plan.sample(max(plan.loops)))

    plan = with_precision(plan, base.train.precision, folder / "exponent.json", largest, tell)
    runner = where.make(folder, largest)
    title = f"exponent of {model or name}; its page is {folder / 'report.html'}"
    with ended_by_sigterm(), Watching(title, checked) as observer:
        result = run_exponent(plan, folder, executor=runner, observer=observer, page=ExponentPage)
    for sentence in user_sentences(result.provenance):
        click.echo(f"loopscale: {sentence}", err=True)
    page = write_exponent_report(folder)
    click.echo(json.dumps(result.model_dump(mode="json"), indent=1) if as_json else _told(result, page))
    if open_page:
        click.launch(str(page))


def _base(config: Path | None, sets: tuple[str, ...], user: bool) -> TrainConfig:
    """Return the config of the trials: the file's, else the demo's."""
    from loopscale.train import load_config, load_values
    from loopscale.transfer import get_preset

    if config is None:
        return get_preset("demo").base(sets, user)
    return load_values(config, sets) if user else load_config(config, sets)


def _target(text: str) -> int:
    axes = parse_axes(text, "--target")
    if set(axes) != {"loops"}:
        raise UserError(f"--target of an exponent is a number of loops, got {text!r}: --target loops=64")
    return axes["loops"]


def _told(result: ExponentResult, page: Path) -> str:
    return "\n".join([result.sentence, *result.says, *([result.next] if result.next else []), f"page: {page}"])
