"""All rules of the conformance table, and learned gates, on one footing: each at its own best strength and rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from outcome import Table, over_seeds
from search import Losses, Make, at_best, base, best_rate, searched

import loopscale as ls

STRENGTHS, LOOPS, LAYERS, SEEDS, STEPS = (0.5, 1.0, 2.0), (8, 32), 1, 3, 60
# Gates replace the strength: they learn it.
GATES = {
    "learned scalar, from 0 (ReZero)": "rezero",
    "learned diagonal, from 0.1 (LayerScale)": "layerscale",
    "learned scalar a visit, from 1/N": "visit_gates",
}
Arms = Mapping[str, Callable[[int, float], Make]]


def arms() -> dict[str, Callable[..., Make]]:
    """name -> (loops, strength) -> training."""

    def rule(name: str, loops: int, strength: float) -> Make:
        return base(loops, rule=name, strength=strength, layers=LAYERS, steps=STEPS)

    def gate(factory: str, loops: int, strength: float) -> Make:
        return base(loops, rule="none", layers=LAYERS, steps=STEPS, own=f"variants.py:{factory}")

    return {
        **{f"`{name}`": partial(rule, name) for name in ls.RULES},
        **{name: partial(gate, factory) for name, factory in GATES.items()},
    }


def strengths_of(loops: int) -> dict[str, float]:
    """Each rule's best strength at this N with one seed: factor-2 steps, on as long as the best lies at an end."""
    makers = arms()
    asked: dict[str, list[float]] = {name: [1.0] if name in GATES else list(STRENGTHS) for name in makers}
    found: dict[tuple[str, float], float] = {}
    while True:
        new = {
            (name, lam): makers[name](loops, lam) for name in makers for lam in asked[name] if (name, lam) not in found
        }
        if not new:
            break
        found.update({key: min(losses.values()) for key, losses in searched("rules", new, 1).items()})
        for name, tried in asked.items():
            best = min(tried, key=lambda lam: found[name, lam])
            if len(tried) > 1 and best in (min(tried), max(tried)) and 2**-9 < best < 2**5:
                tried.append(best / 2 if best == min(tried) else best * 2)
    return {name: min(tried, key=lambda lam: found[name, lam]) for name, tried in asked.items()}


def compared() -> dict[int, dict[str, tuple[float, Losses]]]:
    """N -> name -> (strength, losses around the best rate, all seeds)."""
    out = {}
    for loops in LOOPS:
        chosen, makers = strengths_of(loops), arms()
        curves = searched("rules", {name: makers[name](loops, chosen[name]) for name in makers}, SEEDS)
        out[loops] = {name: (chosen[name], curves[name]) for name in makers}
    return out


def table() -> Table:
    """A row a rule: loss at every N with its strength and rate, and the paired difference to `looped`."""
    found = compared()
    rows = [_row(name, {n: found[n][name] for n in LOOPS}, found[max(LOOPS)]["`looped`"][1]) for name in arms()]
    rows.sort(key=lambda row: row[f"loss at N = {max(LOOPS)}"])
    sentence = (
        "Validation loss in nats, with the strength and rate that are each one's best at that N: strengths by one seed, "
        f"rates on a sqrt(2) grid, {SEEDS} seeds; the last column is paired over seeds. All have the same compute and, but "
        "for the gates, the same parameters; at one layer `looped-complete` is the same network as `looped`."
    )
    setting = f"bytes of Python sources, d = 32, L = {LAYERS}, 8 sequences of 32, {STEPS} AdamW steps"
    return Table("rules", sentence, rows, setting)


def _row(name: str, by_loops: Mapping[int, tuple[float, Losses]], reference: Losses) -> dict[str, str]:
    cells: dict[str, Any] = {"rule": name}
    for n, (strength, losses) in by_loops.items():
        at = f"rate 2^{math.log2(best_rate(losses)):.1f}"
        cells[f"loss at N = {n}"] = f"{np.mean(at_best(losses)):.3f}"
        cells[f"at N = {n}"] = at if name in GATES else f"strength {strength:g}, {at}"
    differences = [a - b for a, b in zip(at_best(by_loops[max(LOOPS)][1]), at_best(reference), strict=True)]
    gap = over_seeds("", differences, (0.0, 0.0))
    column = f"minus `looped` at N = {max(LOOPS)} [95 % interval], n = {SEEDS}"
    cells[column] = "" if name == "`looped`" else f"{gap.value:+.3f} [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]"
    return cells
