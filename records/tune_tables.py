"""The tables of docs/tuning.md: what tuning cost and whether its values held, from records/tune_cost.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parent / "tune_cost.json"
Row = dict[str, Any]
ALLOWED = 0.01  # nats


def rows() -> list[Row]:
    """One a setting and number of loops that was tuned at."""
    found: list[Row] = json.loads(RECORD.read_text())["rows"]
    return found


def held(row: Row) -> bool:
    """Whether the regret at N = 32 was at most 0.01 nats, or half the paired interval where that is more."""
    low, high = row["regret_interval"]
    return bool(row["regret"] <= max(ALLOWED, (high - low) / 2))


def count() -> str:
    """How many of the settings held, by the loops tuned at, and which did not."""
    told = []
    for loops in sorted({row["tuned_at"] for row in rows()}):
        mine = [row for row in rows() if row["tuned_at"] == loops]
        lost = [f"`{row['setting']}`" for row in mine if not held(row)]
        told.append(
            f"Tuned at N = {loops}, the values were as good at N = 32 as a sweep there, to {ALLOWED:g} nats or the "
            f"paired noise, in {sum(map(held, mine))} of {len(mine)} settings"
            + (f" (not in {', '.join(lost)})." if lost else ".")
        )
    checked = [row for row in rows() if row["verification"]]
    said = {
        word: sum(row["verification"]["verdict"] == word for row in checked) for word in ("holds", "fails", "undecided")
    }
    told.append(
        f"Of the {len(checked)} plans from {_listed(checked)} `verify` itself, within a tenth of the cost, said *holds* of "
        f"{said['holds']}, *fails* of {said['fails']} and *undecided* of {said['undecided']}."
    )
    for kind, mine in (("and verification", checked), ("alone", [row for row in rows() if not row["verification"]])):
        if mine:
            shares, swept = ([row[name] for row in mine] for name in ("share_of_direct", "share_of_the_sweep_as_run"))
            told.append(
                f"Tuning {kind} at {_listed(mine)} took {_percent(shares)} of the FLOPs of as many trials at N = 32, and "
                f"{_percent(swept)} of those of the sweep that was run there."
            )
    return " ".join(told)


def _listed(mine: list[Row]) -> str:
    return f"N = {' and '.join(map(str, sorted({row['tuned_at'] for row in mine})))}"


def _percent(shares: list[float]) -> str:
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"


def cost() -> str:
    """A row a setting: the optimum at N = 32 by a sweep, the tuned one, and what each rule loses by it."""
    lines = [
        "| setting | tuned at N | tuned rate, strength, outer rate | best at N = 32 | regret of `looped`, nats "
        "(95 % interval) | of `sqrt` | of `none` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        tuned, best, other = row["tuned"], row["swept_at_32"], row["regret_of_other_rules"]
        mark = "" if held(row) else " **no**"
        low, high = row["regret_interval"]
        outer = tuned["lr"] * tuned["outer_lr"]
        lines.append(
            f"| {row['setting']} | {row['tuned_at']} | 2^{math.log2(tuned['lr']):.1f}, {tuned['strength']:.2g}, "
            f"2^{math.log2(outer):.1f} | 2^{math.log2(best['lr']):.0f}, {best['strength']:g}, "
            f"2^{math.log2(best['outer_rate']):.0f} | {row['regret']:+.4f} ({low:+.4f} to {high:+.4f}){mark} | "
            f"{_other(other['sqrt'])} | {_other(other['none'])} |"
        )
    found = json.loads(RECORD.read_text())
    origin = found["provenance"]
    return (
        "\n".join(lines)
        + f"\n\n({found['model']}; torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]})"
    )


def _other(regret: float) -> str:
    return f"{regret:+.3f}" if math.isfinite(regret) else "diverges"


BLOCKS: dict[str, Callable[[], str]] = {"count": count, "cost": cost}
