"""`loopscale transfer`: the study that shows whether the best learning rate stands still over loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from loopscale.cli.options import COUNTS, list_of, rate, spelt_rule
from loopscale.cli.study_options import Asked, asked, tell_again
from loopscale.errors import UserError
from loopscale.factory import CONTRACT


@click.command(epilog=CONTRACT)
@click.option("--preset", help="demo (the default), laptop or gpu.")
@click.option(
    "--rules",
    "--rule",
    callback=list_of(str, "rules"),
    help="Comma-separated, file.py:RULE too; default looped,sqrt,none.",
)
@click.option("--loops", callback=COUNTS, help="Numbers of loops, such as 1,2,4,8.")
@click.option(
    "--lrs", callback=list_of(rate, "rates such as 2^-6 or 0.01"), help="Fix the rates (0.01 or 2^-6); default: search."
)
@click.option("--strengths", callback=list_of(float, "numbers"), help="Sweep lambda too, such as 0.25,0.5,1.")
@click.option("--seeds", type=int, help="Seeds per cell; two give wide intervals, three a third of that.")
@click.option(
    "--pays/--no-pays",
    "beside_one",
    default=True,
    help="Does looping pay: train one loop beside the largest N, for as many steps and with as much compute.",
)
@asked(
    *("data", "set", "model", "objective", "open"),
    out="Study folder; default runs/transfer-PRESET (of your own code: its file). Continues if it exists.",
)
def command(asked: Asked, preset: str | None, beside_one: bool, **axes: Any) -> None:
    """Train rules x loops x rates x seeds side by side; fit each optimum; say which rule transfers.

    Stop it anywhere and start it again: finished trials are kept. With --out alone the study in that folder goes on, with
    more of what you name. Exit 1 when a rule that claims transfer drifts.
    """
    from loopscale.cli.display import watching

    code = asked.code()  # a mistake in its arguments is told before the slow imports
    from loopscale.report import StudyPage, write_report
    from loopscale.study import check_named
    from loopscale.transfer import Study, StudyPlan, failed, get_preset, run_study
    from loopscale.transfer.presets import SEEDS

    mine = asked.model or asked.objective
    folder = asked.folder("transfer", None if mine else preset or "demo")
    given = {name: value for name, value in axes.items() if value is not None}
    _check_loops(given.get("loops"))
    if "rules" in given:
        given["rules"] = tuple(map(spelt_rule, given["rules"]))
    if preset is None and not asked.anew and (folder / "study.json").exists():
        plan = Study.load(folder).plan
        check_named(folder, plan.user_code, code)
        plan = replace(plan, **given, beside_one=plan.beside_one and beside_one)
        base, title = plan.base, f"study {folder.name}, which goes on"
    else:
        chosen = get_preset(preset or "demo")
        base = chosen.base(asked.overrides(), code is not None)
        plan = StudyPlan(
            base=base,
            user_code=code,
            **{"loops": chosen.loops, "seeds": SEEDS, **given},
            center_lr=chosen.center_lr,
            preset=preset or "demo",
            outer_pilot=asked.objective is None and "outer_lr" not in base.optim.model_fields_set,
            beside_one=beside_one,
            early_end=True,
            spacing=chosen.spacing,
        )
        changed = ", changed" if asked.anew or given else f": {chosen.promise}"
        title = f"study of {mine}" if mine else f"study '{preset or 'demo'}'{changed}"
    plan, runner = asked.placed(plan, base, folder)
    with watching(f"{title}; its page is {folder / 'report.html'}") as observer:
        result = run_study(plan, folder, executor=runner, observer=observer, page=StudyPage)
    tell_again(result["provenance"])
    asked.answer(result, _told(result), write_report(folder))
    if failed(result):
        click.echo(f"check failed: {', '.join(failed(result))} claims transfer and drifts", err=True)
        raise SystemExit(1)


def _check_loops(loops: tuple[int, ...] | None) -> None:
    if loops is not None and len(set(loops)) < 2:
        said = ",".join(map(str, loops))
        raise UserError(f"a study compares numbers of loops, and --loops {said} is one: --loops 1,4")


def _told(result: dict[str, Any]) -> list[str]:
    lines = [result["sentence"]]
    for rule in result["rules"].values():
        lines += [rule["sentence"], *([f"  {rule['next']}"] if rule["next"] else [])]
    lines += [row["sentence"] for row in result["paired"]]
    lines += [result[name]["sentence"] for name in ("pays", "outer") if name in result]
    return [*lines, *([result["early"]] if "early" in result else [])]
