"""Reports in which 1/N brought nothing: their conditions at a small size, each arm at its own best rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from outcome import Table, over_seeds
from recorded import laptop
from search import SETTING, Make, at_best, base, searched

SEEDS = 5
Row = dict[str, str]


def arms() -> dict[str, Make]:
    """Every training that a row needs, by name."""
    return {
        "none, N = 8": base(8, rule="none"),
        "none and damped start, N = 8": base(8, rule="none", own="variants.py:damped"),
        "1/N, N = 8": base(8),
        "1/N and damped start, N = 8": base(8, own="variants.py:damped"),
        "learned scalars, Muon, N = 2": base(2, rule="none", optimizer="muon", own="variants.py:learned_scalars"),
        "1/N, Muon, N = 2": base(2, optimizer="muon"),
        "input unscaled, N = 16": base(16, own="variants.py:injected_unscaled"),
        "input times 1/N, N = 16": base(16, own="variants.py:injected_scaled"),
    }


def coarse_grid() -> Row:
    """No shift of the optimum on a factor-2 grid with N <= 4: seen with the laptop record."""
    found = laptop()["rules"]["none"]
    coarse = []
    for n in ("1", "2", "4"):
        even = [p for p in found["points"][n] if round(math.log2(p["lr"]) * 2) % 2 == 0 and p["loss"] is not None]
        coarse.append(round(math.log2(min(even, key=lambda p: p["loss"])["lr"])))
    low, high = found["slope_interval"]
    still = coarse[-1] >= coarse[0]  # the drift is downwards
    return {
        "condition of the report": "rates in factor-2 steps, N = 1, 2, 4, no scale",
        "what was seen": "best rates " + ", ".join(f"2^{power}" for power in coarse),
        "difference [95 % interval]": f"sqrt(2) steps, fitted, N to 16: {found['slope']:+.2f} octaves per doubling "
        f"[{low:+.2f}, {high:+.2f}], n = 3",
        "so": "the coarse grid shows no drift where there is one"
        if still and high < 0
        else "the coarse grid shows it too",
    }


def says(above: str, below: str) -> Callable[[float, float], str]:
    """In words, what an interval of the first arm minus the second says."""
    return lambda low, high: above if low > 0 else below if high < 0 else "no difference shown"


RULE, BOTH, PATH = ("1/N helps", "1/N hurts"), ("the second rule hurts", "both are better"), ("it costs", "it gains")
PAIRS = (
    ("output projections start at 1/sqrt(2 N), no scale", "none and damped start, N = 8", "1/N, N = 8", RULE),
    ("the same without that start", "none, N = 8", "1/N, N = 8", RULE),
    ("that start on top of 1/N", "1/N and damped start, N = 8", "1/N, N = 8", BOTH),
    ("N = 2, learned scalars, Muon", "learned scalars, Muon, N = 2", "1/N, Muon, N = 2", RULE),
    ("input added at every visit", "input unscaled, N = 16", "input times 1/N, N = 16", PATH),
)


def table() -> Table:
    """A row a report."""
    found = {name: at_best(losses) for name, losses in searched("limits", arms(), SEEDS).items()}
    rows = [coarse_grid()]
    for condition, first, second, words in PAIRS:
        gap = over_seeds("", [a - b for a, b in zip(found[first], found[second], strict=True)], (0.0, 0.0))
        low, high = gap.interval
        seen = ", ".join(f"{name.rpartition(', N')[0]}: {np.mean(found[name]):.3f}" for name in (first, second))
        rows.append(
            {
                "condition of the report": condition,
                "what was seen": seen,
                "difference [95 % interval]": f"{gap.value:+.3f} [{low:+.3f}, {high:+.3f}], n = {SEEDS}",
                "so": says(*words)(low, high),
            }
        )
    sentence = (
        "Each row repeats the condition of a report in which 1/N brought nothing or failed: validation loss in nats, each "
        "arm at its own best rate."
    )
    return Table("limits", sentence, rows, SETTING + f", one layer, {SEEDS} seeds")
