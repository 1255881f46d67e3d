"""Tables of docs/reference/does-looping-pay.md and of chapter 2, from the records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent


def load(name: str) -> dict[str, Any]:
    """Read a record by name."""
    return json.loads((RECORDS / f"{name}.json").read_text())


def _origin(record: dict[str, Any]) -> str:
    origin = record["provenance"]
    return f"torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"


def over_loops() -> str:
    """Loss at each rule's own best rate over N: what more visits of the same weights bring."""
    result = load("transfer_laptop")
    loops = list(map(str, result["loops"]))
    lines = [
        "| rule | " + " | ".join(f"N = {n}" for n in loops) + " | last - first |",
        "|---|" + "---|" * (len(loops) + 1),
    ]
    for rule, found in result["rules"].items():
        losses = [found["optima"][n]["loss"] for n in loops]
        gain = losses[-1] - losses[0]
        lines.append(f"| `{rule}` | " + " | ".join(f"{loss:.3f}" for loss in losses) + f" | {gain:+.3f} |")
    model = result["provenance"]["model"]
    seeds = len(result["provenance"]["seeds"])
    return "\n".join(
        [*lines, "", f"(nats; d = {model['width']}, L = {model['layers']}, {seeds} seeds; {_origin(result)})"]
    )


def against_layers() -> str:
    """One layer looped against as many distinct layers and against the layer once, at each one's best rate."""
    record = load("paper/untied")
    heads = list(record["table"][0])
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(row[head] for head in heads) + " |" for row in record["table"]]
    return "\n".join([*lines, "", f"({record['setting']}; {_origin(record)})"])


def cost() -> str:
    """Memory and processor time of one step at the largest N, by what is kept of the visits."""
    record = load("memory_over_loops")
    last = max(next(iter(record["rows"].values())), key=int)
    whole = record["rows"]["everything kept"][last]
    lines = [
        f"| at N = {last} | MB | of everything kept | CPU s of a step | of everything kept |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["rows"].items():
        mb, seconds = row[last]["mb"], row[last]["cpu_seconds"]
        shares = f"{mb / whole['mb']:.2f} | {seconds:.1f} | {seconds / whole['cpu_seconds']:.2f}"
        lines.append(f"| {name} | {mb:.0f} | {shares} |")
    shape = ", ".join(f"{key} {value}" for key, value in record["shape"].items())
    return "\n".join([*lines, "", f"({shape}; {_origin(record)})"])


def serving() -> str:
    """Compare a looped model with the same network unrolled: weights and tokens a second."""
    record = load("inference")
    looped, unrolled = (record["parameters"][kind] / 1e6 for kind in ("looped", "unrolled"))
    lines = [
        f"Weights: {looped:.1f} million looped, {unrolled:.1f} million unrolled (N = {record['shape']['loops']}).",
        "",
    ]
    lines += ["| tokens a second, looped / unrolled | median (range) |", "|---|---|"]
    for row in record["rows"]:
        low, high = row["ratio_range"]
        lines.append(f"| {row['what']} | {row['ratio_median']:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join([*lines, "", f"({_origin(record)})"])


def post_norm() -> str:
    """Show the two Post-LN rules beside `looped`: tuned at 2 loops, carried to 32, tuned there."""
    record = load("paper/rules")
    heads = [
        "rule",
        "loss at N = 2",
        "loss at N = 32, carried",
        "loss at N = 32, tuned there",
        "regret of carrying [95 % interval], n = 3",
    ]
    rows = [row for row in record["table"] if row["rule"] in ("`looped`", "`deeploop`", "`deepnorm`")]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(row[head] for head in heads) + " |" for row in rows]
    return "\n".join([*lines, "", f"({record['setting']}; {_origin(record)})"])


BLOCKS = {"pay-loops": over_loops, "pay-layers": against_layers, "pay-cost": cost, "pay-serving": serving}
