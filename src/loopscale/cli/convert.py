"""`loopscale convert`: layers of a local Hugging Face model become a looped core; the result is an ordinary checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from loopscale.cli.options import JSON, PATH, finish
from loopscale.errors import UserError, foreign, require

_SIDE_FILES = ("token", "vocab", "merges", "special", "added", "chat_template", "preprocessor", "spiece")


def read_layers(context: click.Context, option: click.Parameter, text: str | None) -> int | tuple[int, int] | None:
    """Read `2..5`, first and last layer of the core, or a number of unique layers."""
    ends = [] if text is None else text.split("..")
    if len(ends) > 2 or not all(end.isascii() and end.isdigit() for end in ends):
        raise click.BadParameter(f"{text!r} is neither a range of layers such as 2..5 nor a number of them")
    return None if not ends else int(ends[0]) if len(ends) == 1 else (int(ends[0]), int(ends[1]))


@click.command()
@click.argument("source", type=PATH)
@click.option("--start", type=int, help="First layer of the core, counted from 0.")
@click.option("--stop", type=int, help="The layer after the core's last.")
@click.option("--loops", type=int, required=True, help="How often the core is visited.")
@click.option(
    "--layers",
    metavar="A..B | L",
    callback=read_layers,
    help="2..5 for the layers 2 to 5, or how many unique ones the core keeps.",
)
@click.option("--tie", type=click.Choice(["first", "average"]), default="first", show_default=True)
@click.option("--steps", type=click.Choice(["damped", "even"]), default="damped", show_default=True)
@click.option("--strength", type=float, help="lambda; default 0.1 damped (0 is the original), 1 even.")
@click.option("--rule", default="looped", show_default=True)
@click.option("--stack", help="Name of the list of layers, where there are several.")
@click.option("--text", type=PATH, help="A text file: report the loss before and after on it.")
@click.option("--out", type=PATH, required=True, help="A new folder for the converted model.")
@click.option("--trust-remote-code", is_flag=True, help="Run model code that the folder brings; never without.")
@JSON
def command(
    source: Path, out: Path, text: Path | None, as_json: bool, trust_remote_code: bool, **settings: Any
) -> None:
    """Convert the Hugging Face model in the folder SOURCE and save it into --out.

    Nothing is downloaded. After `from_pretrained(out)`, `loopscale.restore(model)` puts the loops back.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: name a new one with --out")
    model = _load(source, trust_remote_code)
    from loopscale.adapt import convert

    before = None if text is None else _loss(model, source, text, trust_remote_code)
    handle = convert(model, **settings)
    report = handle.to_json()
    if text is not None and before is not None:
        report |= {"loss_before": before, "loss_after": _loss(model, source, text, trust_remote_code)}
    _save(model, source, out)
    report["out"] = str(out)
    finish(report, _written(str(handle), report), as_json)


def _written(text: str, report: dict[str, Any]) -> str:
    lines = [text]
    if "loss_before" in report:
        lines.append(f"loss {report['loss_before']:.4f} before, {report['loss_after']:.4f} after (nats a token)")
    return "\n".join([*lines, f"saved to {report['out']}: from_pretrained, then loopscale.restore(model)"])


def _load(source: Path, trusted: bool) -> Any:
    if not (source / "config.json").is_file():
        from loopscale.files import check_folder

        check_folder(source, "give that of a Hugging Face model, as save_pretrained writes it")
        ours = (
            "loopscale export makes one of a run" if (source / "config.toml").is_file() else "save_pretrained makes one"
        )
        raise UserError(f"{source} is no Hugging Face model (it has no config.json): {ours}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers: Any = require("transformers", "hf")
    transformers.utils.logging.disable_progress_bar()
    with foreign(f"cannot load the model in {source}"):
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        kinds, brought = config.get("architectures") or [], config.get("auto_map") or {}
        kind = getattr(transformers, kinds[0], None) if kinds else None
        if kind is None and brought and not trusted:
            raise UserError(
                f"{source} brings its own model code ({kinds[0] if kinds else 'auto_map'}), which is not run: "
                "--trust-remote-code runs it"
            )
        auto = next((name for name in ("AutoModelForCausalLM", "AutoModel") if name in brought), "AutoModel")
        loader = kind if kind is not None else getattr(transformers, auto)
        return loader.from_pretrained(source, local_files_only=True, trust_remote_code=trusted).eval()


def _loss(model: Any, source: Path, text: Path, trusted: bool) -> float:
    """Return nats a token on the first 512 tokens of the text."""
    import torch
    from transformers import AutoTokenizer

    if not callable(getattr(model, "get_output_embeddings", None)) or model.get_output_embeddings() is None:
        raise UserError(
            f"{type(model).__name__} gives no logits of tokens, so it has no loss on a text: leave --text out"
        )
    with foreign(f"cannot make tokens of {text} with the tokenizer in {source}"):
        words = text.read_text(encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=trusted)
        ids = tokenizer(words, return_tensors="pt").input_ids[:, :512]
    if ids.shape[1] < 2:
        raise UserError(f"{text} is shorter than two tokens: give a longer text")
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def _save(model: Any, source: Path, out: Path) -> None:
    """Write beside `out` and rename: no half-written model is left."""
    import shutil

    from loopscale.files import folder_aside

    with folder_aside(out) as aside:
        model.save_pretrained(aside)
        for path in source.iterdir():
            if path.is_file() and path.name.startswith(_SIDE_FILES):
                shutil.copy2(path, aside / path.name)
