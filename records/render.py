"""Write the records into README.md and docs/: numbers between markers, pictures. `python records/render.py [--check]`."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> dict:
    """A record by name."""
    return json.loads((ROOT / "records" / f"{name}.json").read_text())


def optimum_table(result: dict) -> str:
    """Rows over N, per rule the loss at its best rate and log2 of that rate."""
    rules = list(result["rules"])
    lines = ["| N | " + " | ".join(f"`{rule}`" for rule in rules) + " |", "|---|" + "---|" * len(rules)]
    for n in map(str, result["loops"]):
        cells = []
        for rule in rules:
            optimum = result["rules"][rule]["optima"][n]
            cells.append(f"{optimum['loss']:.3f} at 2^{math.log2(optimum['lr']):.1f}")
        lines.append(f"| {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def study(result: dict) -> str:
    """The verdict sentences, the table and where they come from."""
    origin = result["provenance"]
    said = [*result["rules"].values(), *result["paired"]]
    sentences = "\n".join(f"- {part['sentence']}" for part in said)
    model = origin["model"]
    return (
        f"{optimum_table(result)}\n\n{sentences}\n\n"
        f"(validation loss in nats at the best rate, and that rate; d = {model['width']}, L = {model['layers']}, "
        f"{origin['train']['steps']} steps, {len(origin['seeds'])} seeds, {origin['trials']} trials, "
        f"{origin['seconds'] / 60:.0f} minutes; torch {origin['torch']}, Python {origin['python']}, {origin['hardware']})"
    )


def benchmarks() -> str:
    """One line a benchmark."""
    rows = ["| measured | ratio, median (range) |", "|---|---|"]
    for name in ("step_time", "sweep_throughput"):
        record = load(name)
        low, high = record["ratio_range"]
        rows.append(f"| {record['claim']} | {record['ratio_median']:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(rows)


def config_keys() -> str:
    """A row for each key of a training's config."""
    from loopscale.cli.keys import keys

    rows = ["| key | default | type | meaning |", "|---|---|---|---|"]
    for key in keys():
        unit = f" ({key.unit})" if key.unit else ""
        rows.append(
            f"| `{key.name}` | {f'`{key.default}`' if key.default else ''} | {key.kind} | {key.meaning}{unit} |"
        )
    return "\n".join(rows)


def documents() -> dict[str, dict[str, Callable[[], str]]]:
    """Which document shows which blocks. A document joins by adding a row."""
    import adapt_tables
    import block_tables
    import exponent_tables
    import pay_tables
    import performance_tables
    import schema_tables
    import score_tables
    import tune_tables
    import unbreakable_tables

    return {
        "README.md": {
            "study": lambda: study(load("transfer_laptop")),
            "benchmarks": benchmarks,
            "power": exponent_tables.headline,
        },
        "docs/adapt.md": adapt_tables.BLOCKS,
        "docs/architecture.md": schema_tables.BLOCKS,
        "docs/blocks.md": block_tables.BLOCKS,
        "docs/exponent.md": exponent_tables.BLOCKS,
        "docs/performance.md": performance_tables.BLOCKS,
        "docs/learn/rule.md": {"post-norm": pay_tables.post_norm},
        "docs/reference/config.md": {"keys": config_keys},
        "docs/reference/does-looping-pay.md": pay_tables.BLOCKS,
        "docs/reference/known-models.md": score_tables.KNOWN,
        "docs/reference/scoreboard.md": score_tables.BLOCKS,
        "docs/reference/unbreakable.md": unbreakable_tables.BLOCKS,
        "docs/tuning.md": tune_tables.BLOCKS,
        "papers/residual_scaling/EXPONENT.md": {
            name: exponent_tables.BLOCKS[name] for name in ("exponent", "elsewhere")
        },
    }


def figures() -> dict[str, bytes]:
    """The pictures that are drawn from the records, by place: README's, side by side and stacked, and the valleys."""
    from readme_figure import readme_figure

    from loopscale.records import ExponentResult, Result
    from loopscale.report import render as render_figure
    from loopscale.report.exponent_page import figures as exponent_figures

    study = Result.model_validate(load("transfer_laptop"))
    valleys = exponent_figures(ExponentResult.model_validate(load("exponent")))["exponent"]
    return {
        "docs/exponent.svg": render_figure(valleys.spec())["svg"],
        "docs/transfer.svg": readme_figure(study),
        "docs/transfer-narrow.svg": readme_figure(study, stacked=True),
    }


def render(name: str, text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The text with every marked block drawn anew."""
    for block, draw in blocks.items():
        pattern = rf"(<!-- records:{block} -->\n).*?(<!-- /records:{block} -->)"
        drawn = draw()
        text, count = re.subn(pattern, lambda m, b=drawn: m.group(1) + b + "\n" + m.group(2), text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{name} has no block 'records:{block}'")
    return text


if __name__ == "__main__":
    for document, drawings in documents().items():
        place = ROOT / document
        now = place.read_text()
        fresh = render(document, now, drawings)
        if "--check" in sys.argv and fresh != now:
            raise SystemExit(f"{document} differs from the records: run python records/render.py")
        if fresh != now:
            place.write_text(fresh)
    for picture, drawn in figures().items():
        place = ROOT / picture
        old = place.read_bytes() if place.exists() else b""
        if "--check" in sys.argv and drawn != old:
            raise SystemExit(f"{picture} differs from the records: run python records/render.py")
        place.write_bytes(drawn)
