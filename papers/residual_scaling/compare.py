"""All rules on one footing, and looped against untied. `python papers/residual_scaling/compare.py`: kept trial by trial."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from outcome import over_seeds
from trained import base, losses_of

import loopscale as ls
from loopscale.atomic import write_json
from loopscale.train import provenance
from loopscale.transfer import Arm, StudyPlan

RECORD = Path(__file__).resolve().parents[2] / "records" / "paper" / "rules.json"
STRENGTHS, LOOPS, SEEDS, STEPS, TASK_STEPS = (0.25, 0.5, 1.0, 2.0), (8, 32), 3, 60, 400
Losses = Mapping[tuple[float, int], float]


def at_best(losses: Losses, seeds: int = SEEDS) -> list[float]:
    """Losses by seed at the rate with the smallest mean over all seeds; infinite where all diverged."""
    rates = sorted({rate for rate, seed in losses if all((rate, s) in losses for s in range(seeds))})
    table = [[losses[rate, seed] for seed in range(seeds)] for rate in rates]
    return min(table, key=lambda row: sum(row))


def strengths() -> dict[str, float]:
    """Each rule's own strength, tuned with its rate at N = 2."""
    plan = StudyPlan(base(steps=STEPS), tuple(ls.RULES), (2,), seeds=1, strengths=STRENGTHS)
    losses = losses_of("rules-base", plan)
    return {rule: min(STRENGTHS, key=lambda lam: min(losses(Arm(rule, lam, 2)).values())) for rule in ls.RULES}


def rules() -> dict[str, dict[int, list[float]]]:
    """Losses by seed at each rule's own best rate and strength, for every N."""
    found = {}
    for rule, strength in strengths().items():
        plan = StudyPlan(base(steps=STEPS), (rule,), LOOPS, seeds=SEEDS, strengths=(strength,))
        losses = losses_of(f"rules-{rule}", plan)
        found[f"{rule}, strength {strength:g}"] = {n: at_best(losses(Arm(rule, strength, n))) for n in LOOPS}
    return found


def untied(data: str, loops: int, steps: int, seeds: int) -> dict[str, list[float]]:
    """Looped N times, N distinct layers (equal compute), one layer once (equal parameters)."""
    name = data.replace(":", "-")
    arms = {f"1 layer, {loops} loops": (1, loops), f"{loops} layers": (loops, 1), "1 layer": (1, 1)}
    found = {}
    for label, (layers, n) in arms.items():
        plan = StudyPlan(base(layers, data=data, steps=steps), ("looped",), (n,), seeds=seeds)
        losses = losses_of(f"untied-{name}-{layers}-{n}", plan)
        found[label] = at_best(losses(Arm("looped", 1.0, n)), seeds)
    return found


def _said(losses: list[float]) -> str:
    return "diverges" if not math.isfinite(sum(losses)) else f"{np.mean(losses):.3f}"


def rule_rows(found: Mapping[str, Mapping[int, list[float]]]) -> list[dict[str, str]]:
    """A row a rule: loss at every N, and the difference to `looped` at the largest."""
    reference = next(by_loops for name, by_loops in found.items() if name.startswith("looped,"))[max(LOOPS)]
    rows = []
    for name, by_loops in found.items():
        last = by_loops[max(LOOPS)]
        shown = "" if last is reference else "diverges"
        if last is not reference and math.isfinite(sum(last)):
            gap = over_seeds("", [a - b for a, b in zip(last, reference, strict=True)], (0.0, 0.0))
            shown = f"{gap.value:+.3f} [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]"
        cells = {f"loss at N = {n}": _said(by_loops[n]) for n in LOOPS}
        rows.append({"compared": name, **cells, f"minus `looped` at N = {max(LOOPS)}, n = 3": shown})
    return rows


def untied_rows(data: str, loops: int, steps: int, seeds: int) -> list[dict[str, str]]:
    """Three rows: looped, equal compute, equal parameters."""
    last = f"minus `looped` at N = {max(LOOPS)}, n = 3"
    found = untied(data, loops, steps, seeds)
    first = next(iter(found.values()))
    rows = []
    for label, losses in found.items():
        gap = over_seeds("", [a - b for a, b in zip(losses, first, strict=True)], (0.0, 0.0))
        low, high = gap.interval
        shown = "" if losses is first else f"to the looped one: {gap.value:+.3f} [{low:+.3f}, {high:+.3f}]"
        cells = {f"loss at N = {n}": _said(losses) if n == loops else "" for n in LOOPS}
        rows.append({"compared": f"{data}, {steps} steps: {label}", **cells, last: shown})
    return rows


def main() -> None:
    """Run or continue everything, or only the parts named, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["rules", "untied", "tasks", []], default=[])
    parts = parser.parse_args().parts or ["rules", "untied", "tasks"]
    began = time.perf_counter()
    table: list[dict[str, str]] = []
    if "rules" in parts:
        table += rule_rows(rules())
    if "untied" in parts:
        table += untied_rows("stdlib", 8, STEPS, SEEDS)
    if "tasks" in parts:
        for task in ("addition", "permutation"):
            table += untied_rows(f"synthetic:{task}", 8, TASK_STEPS, SEEDS)
    write_json(RECORD, _record(table, parts, time.perf_counter() - began))


def _record(table: list[dict[str, str]], parts: list[str], seconds: float) -> dict[str, Any]:
    missing = sorted({"rules", "untied", "tasks"} - set(parts))
    left = f" Not run: {', '.join(missing)}." if missing else ""
    return {
        "sentence": "Validation loss in nats at the best rate of each arm; strengths tuned at N = 2 with one seed, "
        f"rates searched on a sqrt(2) grid at every N, three seeds.{left}",
        "table": table,
        "setting": f"d = 32, one layer, 8 sequences of 32, {STEPS} AdamW steps on bytes of Python sources unless named",
        "command": "python papers/residual_scaling/compare.py " + " ".join(parts),
        "provenance": {**provenance(), "seconds": round(seconds, 1)},
    }


if __name__ == "__main__":
    main()
