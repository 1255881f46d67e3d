"""`loopscale export`: a run as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import click

from loopscale.cli.options import JSON, PATH, TRAINED, finish


@click.command()
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@TRAINED
@JSON
def command(run: Path, out: Path, model: str | None, as_json: bool) -> None:
    """Write the model of the run folder RUN to the new folder OUT: weights, config, tokenizer and model card.

    AutoModelForCausalLM and AutoTokenizer read it after `import loopscale.integrations.huggingface`. A run of your
    model needs --model, and must be a model of transformers.
    """
    from loopscale.cli.sentence import warn
    from loopscale.integrations.export import export_run

    done = export_run(run, out, model=model, warn=warn)
    finish(done, f"exported step {done['step']} of {run}, {done['parameters']:,} parameters, to {out}", as_json)
