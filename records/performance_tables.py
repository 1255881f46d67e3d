"""The tables of docs/performance.md, from the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> dict:
    """A record by name."""
    return json.loads((ROOT / "records" / f"{name}.json").read_text())


def ratios(*names: str) -> str:
    """One line a record: its claim, its ratio, what it was measured on."""
    rows = ["| measured | ratio, median (range) | pairs |", "|---|---|---|"]
    for name in names:
        if (ROOT / "records" / f"{name}.json").exists():
            record = load(name)
            low, high = record["ratio_range"]
            rows.append(
                f"| {record['claim']} | {record['ratio_median']:.3f} ({low:.3f} to {high:.3f}) | {record['pairs']} |"
            )
    return "\n".join(rows)


def peers() -> str:
    """Our step against every peer, at every N."""
    record = load("step_time")
    if "rows" not in record:
        return "Not recorded yet."
    rows = [
        "| N | " + " | ".join(record["rows"][0]["against"]) + " |",
        "|---|" + "---|" * len(record["rows"][0]["against"]),
    ]
    for row in record["rows"]:
        cells = [
            f"{r['ratio_median']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f})"
            for r in row["against"].values()
        ]
        rows.append(f"| {row['loops']} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", f"({record['clock']}; {_shape(record)})"])


def memory() -> str:
    """MB of a step over N, by what is kept."""
    if not (ROOT / "records" / "memory_over_loops.json").exists():
        return "Not recorded yet."
    record = load("memory_over_loops")
    loops = list(next(iter(record["rows"].values())))
    lines = ["| MB at N = | " + " | ".join(loops) + " | CPU s at the last |", "|---|" + "---|" * (len(loops) + 1)]
    for mode, row in record["rows"].items():
        cells = [f"{row[n]['mb']:.0f}" for n in loops]
        lines.append(f"| {mode} | " + " | ".join(cells) + f" | {row[loops[-1]]['cpu_seconds']:.1f} |")
    return "\n".join([*lines, "", f"({_shape(record)}, gradients included)"])


def _shape(record: dict) -> str:
    shape = ", ".join(f"{key} {value}" for key, value in record["shape"].items())
    origin = record["provenance"]
    return f"{shape}; torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"


BLOCKS: dict[str, Callable[[], str]] = {
    "ratios": lambda: ratios("step_time", "sampled_loops", "compile_time", "memory_over_loops"),
    "peers": peers,
    "memory": memory,
}
