"""Predictions that the laptop study already answers: 9, 10 and 12, read from records/transfer_laptop.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from outcome import ABOVE, Figure, Line, Measured, Outcome, over_seeds

from loopscale.errors import UserError
from loopscale.transfer.verdict import SLOPE_TOLERANCE

RECORD = Path(__file__).resolve().parents[2] / "records" / "transfer_laptop.json"
NAMES = {"looped": "1/N", "sqrt": "1/sqrt(N)", "none": "none"}
Losses = list[float]


@cache
def laptop() -> dict[str, Any]:
    """The record; raises `UserError` with the command that makes it."""
    try:
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    except FileNotFoundError:
        command = "loopscale transfer --preset laptop --out runs/laptop && cp runs/laptop/result.json"
        raise UserError(f"{RECORD.name} is missing: make it with {command} records/{RECORD.name}") from None
    return found


def setting() -> str:
    """What the laptop study was, in words."""
    origin = laptop()["provenance"]
    model, train = origin["model"], origin["train"]
    return (
        f"the laptop study: bytes of Python sources, d = {model['width']}, L = {model['layers']}, {train['steps']} AdamW "
        f"steps, {len(origin['seeds'])} seeds, {origin['trials']} trials"
    )


def best_losses(rule: str, loops: int) -> Losses:
    """The losses by seed at the rate of the sqrt(2) grid with the smallest mean; rates run with one seed do not count."""
    return min(_whole(rule, loops).values(), key=lambda losses: sum(losses) / len(losses))


def _whole(rule: str, loops: int) -> dict[float, Losses]:
    points = laptop()["rules"][rule]["points"][str(loops)]
    full = max(len(point["losses"]) for point in points)
    return {p["lr"]: p["losses"] for p in points if len(p["losses"]) == full and None not in p["losses"]}


def _slope(rule: str, limits: tuple[float, float]) -> Measured:
    found = laptop()["rules"][rule]
    low, high = found["slope_interval"]
    seeds = len(laptop()["provenance"]["seeds"])
    return Measured(f"octaves per doubling of N, eps {NAMES[rule]}", found["slope"], (low, high), seeds, limits)


def _rates(rules: Mapping[str, str]) -> Figure:
    counts = laptop()["loops"]
    lines = [
        Line(f"eps {name}", counts, [[laptop()["rules"][rule]["optima"][str(n)]["lr"] for n in counts]])
        for rule, name in rules.items()
    ]
    return Figure("N", "best learning rate", lines)


def rate_stands() -> Outcome:
    """Prediction 9: within the study's own tolerance of 0."""
    tolerance = (-SLOPE_TOLERANCE, SLOPE_TOLERANCE)
    return Outcome(9, [_slope("looped", tolerance)], _rates({"looped": "1/N"}), setting())


def rate_drifts() -> Outcome:
    """Prediction 10: below 0 for both other scales."""
    measured = [_slope("sqrt", (-ABOVE, 0.0)), _slope("none", (-ABOVE, 0.0))]
    return Outcome(10, measured, _rates(NAMES), setting())


def _losses_figure() -> Figure:
    counts = laptop()["loops"]
    lines = []
    for rule, name in NAMES.items():
        by_loops = [best_losses(rule, n) for n in counts]
        lines.append(Line(f"eps {name}", counts, [list(row) for row in zip(*by_loops, strict=True)]))
    return Figure("N", "validation loss at the best rate, nats", lines, log_y=False)


def loss_ordering() -> Outcome:
    """Prediction 12: paired over seeds, at the largest N."""
    last = max(laptop()["loops"])
    looped, sqrt, none = (np.array(best_losses(rule, last)) for rule in NAMES)
    measured = [
        over_seeds(f"loss of 1/sqrt(N) minus loss of 1/N at N = {last}", list(sqrt - looped), (0.0, ABOVE)),
        over_seeds(f"loss of none minus loss of 1/sqrt(N) at N = {last}", list(none - sqrt), (0.0, ABOVE)),
    ]
    return Outcome(12, measured, _losses_figure(), setting())


STUDIES = {9: rate_stands, 10: rate_drifts, 12: loss_ordering}
