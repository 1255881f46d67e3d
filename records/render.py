"""Write the numbers of the records into README.md, between its markers. `python records/render.py [--check]`."""

from __future__ import annotations

import json
import math
import re
import sys
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
    sentences = "\n".join(f"- {rule['sentence']}" for rule in result["rules"].values())
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


def render(text: str) -> str:
    """The text with every marked block drawn anew."""
    blocks = {"study": study(load("transfer_laptop")), "benchmarks": benchmarks()}
    for name, block in blocks.items():
        pattern = rf"(<!-- records:{name} -->\n).*?(<!-- /records:{name} -->)"
        text, count = re.subn(pattern, lambda m, b=block: m.group(1) + b + "\n" + m.group(2), text, flags=re.S)
        if count != 1:
            raise SystemExit(f"README.md has no block 'records:{name}'")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    now = readme.read_text()
    if "--check" in sys.argv:
        raise SystemExit(
            0 if render(now) == now else "README.md differs from the records: run python records/render.py"
        )
    readme.write_text(render(now))
