"""`loopscale evaluate`: tasks of lm-evaluation-harness on a run."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from loopscale.cli.options import JSON, PATH, TRAINED, finish


@click.command()
@click.argument("run", type=PATH)
@click.option("--tasks", required=True, help="Names of tasks, or YAML files of tasks, with commas between.")
@click.option("--include", type=PATH, help="A folder of task files of your own.")
@click.option("--loops", type=int, help="Apply the core this often; default: as in training.")
@click.option("--limit", type=int, help="At most this many documents of each task.")
@click.option("--batch-size", default=8, show_default=True, help="Sequences at a time.")
@click.option("--online", is_flag=True, help="Let the harness download the data of a task.")
@TRAINED
@JSON
def command(run: Path, tasks: str, as_json: bool, **options: Any) -> None:
    """Evaluate the run folder RUN, or a folder that `loopscale export` wrote, on tasks of lm-evaluation-harness."""
    from loopscale.cli.sentence import warn
    from loopscale.integrations.evaluation import evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with redirect_stdout(sys.stderr):
        found = evaluate_tasks(run, names, **options, warn=warn)
    finish(found, _table(found), as_json)


def _table(found: dict[str, Any]) -> str:
    scale = f", residual scale {found['residual_scale']:.4g}" if "residual_scale" in found else ""
    lines = [f"at {found['loops']} loops{scale}"]
    for task, numbers in found["tasks"].items():
        errors = {name.removesuffix("_stderr"): value for name, value in numbers.items() if name.endswith("_stderr")}
        for name, value in numbers.items():
            if not name.endswith("_stderr"):
                spread = f" ± {errors[name]:.4f}" if name in errors else ""
                lines.append(f"{task}, {found['documents'].get(task, 0)} documents: {name} {value:.4f}{spread}")
    return "\n".join(lines)
