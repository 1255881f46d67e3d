"""Commands on a trained run: `loopscale generate`, `export`, `evaluate` and `track`."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from loopscale.cli.options import JSON, PATH, TRAINED, finish
from loopscale.cli.sentence import warn


@click.command()
@click.argument("run", type=PATH)
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--tokens", default=200, show_default=True, help="How many tokens to add.")
@click.option("--temperature", default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--loops", type=int, help="Apply the core this often; default: as in training.")
@click.option("--cache", help="Keys and values kept: per-visit (the default), last-visit, none.")
@click.option("--scale", type=click.Choice(["rescale", "freeze"]), help="With --loops: eps follows N, or stays.")
@click.option("--exit-below", type=float, help="End the visits once one changes the stream by less than this fraction.")
@TRAINED
@JSON
def generate(run: Path, prompt: str, tokens: int, as_json: bool, **options: Any) -> None:
    """Continue a prompt with the model of the run folder RUN."""
    from loopscale.train import generate

    began = time.perf_counter()
    text = generate(run, prompt, tokens, **options, warn=warn)
    told = {"run": str(run), "prompt": prompt, "text": text, "tokens": tokens, **options}
    del told["model"]
    finish({**told, "seconds": round(time.perf_counter() - began, 3)}, text, as_json)


@click.command()
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@TRAINED
@JSON
def export(run: Path, out: Path, model: str | None, as_json: bool) -> None:
    """Write the model of the run folder RUN to the new folder OUT: weights, config, tokenizer and model card.

    AutoModelForCausalLM and AutoTokenizer read it after `import loopscale.integrations.huggingface`. A run of your
    model needs --model, and must be a model of transformers.
    """
    from loopscale.integrations.export import export_run

    done = export_run(run, out, model=model, warn=warn)
    finish(done, f"exported step {done['step']} of {run}, {done['parameters']:,} parameters, to {out}", as_json)


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
def evaluate(run: Path, tasks: str, as_json: bool, **options: Any) -> None:
    """Evaluate the run folder RUN, or a folder that `loopscale export` wrote, on tasks of lm-evaluation-harness."""
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


@click.command()
@click.argument("run", type=PATH)
@click.option("--to", "names", multiple=True, required=True, help="tensorboard, wandb or trackio; several with commas.")
@JSON
def track(run: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Send the steps of the run folder RUN that a tracker has not seen. Nothing leaves the machine.

    Live instead: loopscale train ... --set 'train.trackers=["tensorboard"]'.
    """
    from loopscale.trackers import track_run

    done = track_run(run, [name.strip() for text in names for name in text.split(",")])
    lines = [f"{one.tracker}: {one.added} new steps, up to step {one.step}, in {one.place}" for one in done]
    finish([asdict(one) for one in done], "\n".join(lines), as_json)
