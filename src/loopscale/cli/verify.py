"""`loopscale verify`: test a plan between proxy and target within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loopscale.cli.options import COUNTS, PATH, parse_seconds
from loopscale.cli.study_options import Asked, asked


@click.command()
@click.argument("folder", type=PATH)
@click.option("--loops", callback=COUNTS, default="", help="Numbers of loops in between, such as 4,8,16.")
@click.option("--layers", callback=COUNTS, default="", help="Numbers of layers; both exponents b are tried.")
@click.option("--width", "widths", callback=COUNTS, default="", help="Widths in between.")
@click.option("--joint", is_flag=True, help="Also the largest of each at once.")
@click.option(
    "--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Seeds of each point, paired."
)
@click.option("--tolerance", type=float, default=0.01, show_default=True, help="Nats of regret up to which it holds.")
@click.option("--budget", help="Time to spend, such as 10m; default: by --share.")
@click.option("--share", type=float, default=0.1, show_default=True, help="Of a direct sweep's FLOPs, tuning included.")
@click.option("--model", metavar="PLACE", help="The model that was tuned: file.py:make_model.")
@click.option("--objective", metavar="PLACE", help="The objective that was tuned: file.py:objective.")
@asked()
def command(asked: Asked, folder: Path, budget: str | None, **checks: Any) -> int:
    """Train the plan in FOLDER (`loopscale tune`) beside its neighbours at sizes between proxy and target.

    Says the one-shot regret at each, what to expect at the target, and what was not verified.

    Exit codes: 0 it holds or the data do not decide, 1 it fails, 2 a mistake to mend.
    """
    from loopscale.cli.display import watching
    from loopscale.report import write_tune_report
    from loopscale.study import check_named
    from loopscale.tune import Checks, TuneSettings, read_plan, verify
    from loopscale.tune.verification import MADE

    settings, code = TuneSettings.from_json(read_plan(folder)["settings"]), asked.code()
    check_named(folder, settings.user_code, code, MADE)
    wished = Checks(**checks, budget_seconds=parse_seconds(budget))
    runner = asked.where.make(folder, lambda: settings.typical_job(max(wished.loops, default=1)))
    with watching(f"verifying {folder}") as observer:
        found = verify(folder, wished, user_code=code, executor=runner, observer=observer)
    asked.answer(found, _said(found), write_tune_report(folder))
    return 1 if found["verdict"] == "fails" else 0


def _said(found: dict[str, Any]) -> list[str]:
    from loopscale.tune import nats

    lines = []
    for row in found["local"]:
        shown = "the plan diverged" if row["regret"] is None else f"regret {nats(row['regret'], row['interval'])}"
        lines.append(f"{row['label']}: {shown}, {row['verdict']}")
    lines += [f"L = {row['layers']}, b = 1/2 against b = 1 at the plan: {row['says']}" for row in found["exponents"]]
    lines += [found["sentence"], *found["says"], *([found["next"]] if found["next"] else [])]
    lines += [found["pays"]["sentence"]] if "pays" in found else []
    return [*lines, *(f"not verified: {said}" for said in found["not_verified"])]
