"""`loopscale transfer`: the study that shows whether the best learning rate stands still over loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loopscale.cli.executors import Where, placed
from loopscale.errors import UserError
from loopscale.factory import CONTRACT


def list_of(kind: Callable[[str], Any], noun: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that reads a comma-separated list of a kind; a mistake names what the list is of."""

    def parse(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a comma-separated list of {noun}") from None

    return parse


def rate(text: str) -> float:
    """Return a number, or a power of two: 0.0156 or 2^-6."""
    return 2.0 ** float(text[2:]) if text.startswith("2^") else float(text)


@click.command(epilog=CONTRACT)
@click.option("--preset", default="demo", show_default=True, help="demo, laptop or gpu.")
@click.option(
    "--rules",
    "--rule",
    callback=list_of(str, "rules"),
    help="Comma-separated, file.py:RULE too; default looped,sqrt,none.",
)
@click.option("--loops", callback=list_of(int, "whole numbers"), help="Numbers of loops, such as 1,2,4,8.")
@click.option(
    "--lrs",
    callback=list_of(rate, "rates such as 2^-6 or 0.01"),
    help="Fix the rates (0.01 or 2^-6); default: search.",
)
@click.option("--strengths", callback=list_of(float, "numbers"), help="Sweep lambda too, such as 0.25,0.5,1.")
@click.option(
    "--seeds",
    type=int,
    help="Seeds per cell; two give wide intervals, three a third of that.",
)
@click.option("--data", help="stdlib, synthetic:TASK, a file or folder, or hf:NAME.")
@click.option(
    "--set", "sets", multiple=True, metavar="A.B=C", help="Any value of the base config, such as train.steps=300."
)
@click.option("--model", "model", metavar="PLACE", help="Your own model: file.py:make_model, a factory; see below.")
@click.option("--objective", metavar="PLACE", help="Your own Python objective: file.py:objective, values -> loss.")
@placed
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Study folder; default runs/transfer-PRESET (of your own code: its file). Continues if it exists.",
)
@click.option(
    "--pays/--no-pays",
    "beside_one",
    default=True,
    help="Does looping pay: train one loop beside the largest N, for as many steps and with as much compute.",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page when done.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    preset: str,
    rules: tuple[str, ...] | None,
    loops: tuple[int, ...] | None,
    lrs: tuple[float, ...] | None,
    strengths: tuple[float, ...] | None,
    seeds: int | None,
    data: str | None,
    sets: tuple[str, ...],
    model: str | None,
    objective: str | None,
    where: Where,
    out: Path | None,
    open_page: bool,
    as_json: bool,
    beside_one: bool,
) -> None:
    """Train rules x loops x rates x seeds side by side; fit each optimum; say which rule transfers.

    Stop it anywhere and start it again: finished trials are kept. Exit 1 when a rule that claims transfer drifts.
    """
    from loopscale.cli.sigterm import ended_by_sigterm
    from loopscale.cli.user_code import checked, find_user_code, study_name, tell, user_sentences
    from loopscale.cli.user_rule import spelt_rule
    from loopscale.cli.watching import Watching

    code = find_user_code(model, objective)  # a mistake in its arguments is told before the slow imports
    from loopscale.report import StudyPage, write_report
    from loopscale.study import with_precision
    from loopscale.transfer import Cell, StudyPlan, failed, get_preset, run_study, seeds_by_cost

    chosen = get_preset(preset)
    axis = _axis(loops) or chosen.loops
    given = where.sets(sets if data is None else (f"data.path={json.dumps(data)}", *sets))
    base = chosen.base(given, code is not None)
    plan = StudyPlan(
        base=base,
        user_code=code,
        rules=tuple(map(spelt_rule, rules or ())) or ("looped", "sqrt", "none"),
        loops=axis,
        lrs=lrs,
        seeds=chosen.seeds if seeds is None else seeds,
        cheap_seeds=seeds_by_cost(axis, chosen.seeds) if seeds is None and chosen.by_cost else (),
        strengths=strengths or chosen.strengths,
        center_lr=chosen.center_lr,
        preset=preset,
        outer_pilot=objective is None and "outer_lr" not in base.optim.model_fields_set,
        beside_one=beside_one,
        early_end=True,
        spacing=chosen.spacing,
    )
    mine = model or objective
    folder = out or Path("runs") / f"transfer-{preset if mine is None else study_name(mine)}"
    changed = bool(sets) or any(value is not None for value in (rules, loops, lrs, strengths, seeds, data))
    usual = f"study '{preset}', changed" if changed else f"study '{preset}': {chosen.promise}"

    def largest() -> dict[str, Any]:
        return plan.job_config(Cell(plan.arms[0], plan.center_lr, 0))

    plan = with_precision(plan, base.train.precision, folder / "study.json", largest, tell)
    runner = where.make(folder, largest)
    title = f"study of {mine}" if mine else usual
    with ended_by_sigterm(), Watching(f"{title}; its page is {folder / 'report.html'}", checked) as observer:
        result = run_study(plan, folder, executor=runner, observer=observer, page=StudyPage)
    for sentence in user_sentences(result["provenance"]):
        click.echo(f"loopscale: {sentence}", err=True)
    page = write_report(folder)
    _tell(result, page, as_json)
    if open_page:
        click.launch(str(page))
    if failed(result):
        click.echo(f"check failed: {', '.join(failed(result))} claims transfer and drifts", err=True)
        raise SystemExit(1)


def _axis(loops: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if loops is not None and len(set(loops)) < 2:
        said = ",".join(map(str, loops))
        raise UserError(f"a study compares numbers of loops, and --loops {said} is one: --loops 1,4")
    return loops


def _tell(result: dict[str, Any], page: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    told = [
        [rule["sentence"], f"  {rule['next']}"] if rule["next"] else [rule["sentence"]]
        for rule in result["rules"].values()
    ]
    compared = [row["sentence"] for row in result["paired"]]
    extra = [result[name]["sentence"] for name in ("pays", "outer") if name in result]
    extra += [result["early"]] if "early" in result else []
    click.echo("\n".join([result["sentence"], *(line for lines in told for line in lines), *compared, *extra]))
    click.echo(f"page: {page}")
