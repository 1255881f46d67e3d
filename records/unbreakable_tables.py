"""The table of docs/reference/unbreakable.md, drawn from records/unbreakable.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "unbreakable.json"


def _campaigns() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RECORD.read_text())["campaigns"]
    return found


def campaigns() -> str:
    """A row a campaign: what is claimed, how often it was tried, what did not hold."""
    lines = ["| campaign | claim | tried | faults | seconds | commit |", "|---|---|---|---|---|---|"]
    for name, row in _campaigns().items():
        commit = str(row["commit"])[:10]
        faults = len(row["faults"])
        lines.append(
            f"| {name} | {row['claim']} | {row['tried']:,} | {faults or 'none'} | {row['seconds']:,} | {commit} |"
        )
    return "\n".join(lines)


def kinds() -> str:
    """How often each kind was tried, and what stayed as it was."""
    lines = []
    for name, row in _campaigns().items():
        told = ", ".join(f"{kind} {count:,}" for kind, count in row["by"].items())
        lines.append(f"- **{name}**: {told}.")
        lines += [f"  - did not hold: {fault}" for fault in row["faults"]]
        grown = {key: value for key, value in row.get("measured", {}).items() if key.endswith("MB")}
        ended = {key: value for key, value in row.get("measured", {}).items() if key.startswith("exit ")}
        if ended:
            lines.append(
                f"  - ended with {', '.join(f'{key} {value:,.0f} times' for key, value in sorted(ended.items()))}."
            )
        if grown:
            said = ", ".join(f"{key.removesuffix(', MB')} {value:+.1f}" for key, value in grown.items())
            lines.append(f"  - megabytes of memory from a third of the rounds to the end: {said}.")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {"campaigns": campaigns, "kinds": kinds}
