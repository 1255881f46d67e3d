"""The tables of docs/blocks.md, drawn from own_blocks.json and own_transfer.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def _load(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return record


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return sum(run[key] for run in runs) / len(runs)


def _kappa(runs: list[dict[str, Any]], key: str) -> str:
    return "not measured" if any(run[key] is None for run in runs) else f"{_mean(runs, key):.1f}"


def _slopes(values: dict[str, float] | None) -> str:
    if values is None:
        return "not asked"
    return " / ".join(f"{values[key]:+.2f}" for key in ("stream", "change_first", "change_last"))


def own_blocks() -> str:
    """A row a block: slopes under its rule and none, losses at one rate at N = 1 and 8, kappa."""
    record = _load("own_blocks")
    rows = [
        "| block | rule | slopes over N: stream / change, 1 step / 10 steps | the same with `none` | loss at N = 1, 8 | "
        "right at N = 1, 8 | kappa at the start | after training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, block in record["blocks"].items():
        one, eight = block["runs"]["1"], block["runs"]["8"]
        rows.append(
            f"| `{name}` | `{block['rule']}` | {_slopes(block['slopes'])} | {_slopes(block['slopes_none'])} | "
            f"{_mean(one, 'loss'):.2f}, {_mean(eight, 'loss'):.2f} | "
            f"{_mean(one, 'accuracy'):.0%}, {_mean(eight, 'accuracy'):.0%} | "
            f"{_kappa(eight, 'kappa')} | {_kappa(eight, 'kappa_trained')} |"
        )
    origin = record["provenance"]
    rows.append(
        f"\n(flat: within 0.25 of 0; held-out loss in nats and share of digits right after {record['steps']} AdamW "
        f"steps at the one rate 2^{math.log2(record['lr']):.0f}, mean of {len(record['seeds'])} seeds; "
        f"torch {origin['torch']}, {origin['hardware']})"
    )
    return "\n".join(rows)


def experts() -> str:
    """What routing does to the alignment, one sentence from the record."""
    found = _load("own_blocks")["experts"]
    sparse, dense = found["experts"], found["dense"]
    start, trained = (sum(sparse[key]) / len(sparse[key]) for key in ("start", "trained"))
    dense_start, dense_trained = (sum(dense[key]) / len(dense[key]) for key in ("start", "trained"))
    return (
        f"Matrices of the experts, kappa at N = 8: {start:.2f} on average at the start (lowest {min(sparse['start']):.2f}) "
        f"and {trained:.2f} after training; of the same MLP without experts {dense_start:.2f} and {dense_trained:.2f} "
        "(one seed)."
    )


def own_transfer() -> str:
    """For each study its verdicts and a table over N."""
    record = _load("own_transfer")
    parts = [_study(study) for study in record["studies"]]
    return "\n\n".join(parts)


def _study(study: dict[str, Any]) -> str:
    rules = study["rules"]
    lines = [f"**{study['title']}**", "", "| N | " + " | ".join(f"`{rule}`" for rule in rules) + " |"]
    lines.append("|---|" + "---|" * len(rules))
    for n in map(str, study["loops"]):
        cells = [f"{r['optima'][n]['loss']:.3f} at 2^{math.log2(r['optima'][n]['lr']):.1f}" for r in rules.values()]
        lines.append(f"| {n} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {part['sentence']}" for part in (*rules.values(), *study["paired"])), ""]
    origin = study["provenance"]
    lines.append(
        f"({study['what']}; loss at the best rate, and that rate; sqrt(2) grid, {len(origin['seeds'])} seeds, "
        f"{origin['trials']} trials; torch {origin['torch']}, Python {origin['python']}, {origin['hardware']})"
    )
    return "\n".join(lines)


BLOCKS = {"own_blocks": own_blocks, "experts": experts, "own_transfer": own_transfer}
