"""What a study of one prediction gives: numbers with intervals, held against limits that were set beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loopscale.teaching import explain
from loopscale.transfer import estimate

Interval = tuple[float, float]
ABOVE = math.inf


@dataclass(frozen=True)
class Measured:
    """One number: its value, 95 % interval over n seeds, and the limits within which the prediction holds.

    `holds` is None when the interval lies across a limit.
    """

    what: str
    value: float
    interval: Interval
    n: int
    limits: Interval

    @property
    def holds(self) -> bool | None:
        """True when the whole interval lies within the limits, False when all of it lies outside."""
        low, high = self.interval
        if self.limits[0] <= low and high <= self.limits[1]:
            return True
        return False if high < self.limits[0] or low > self.limits[1] else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; an open limit is null."""
        limits = [limit if math.isfinite(limit) else None for limit in self.limits]
        return {
            "what": self.what,
            "value": round(self.value, 5),
            "interval": [round(end, 5) for end in self.interval],
            "n": self.n,
            "limits": limits,
            "holds": self.holds,
        }


@dataclass(frozen=True)
class Line:
    """One curve of a figure: y has one row a seed; None where a training diverged."""

    label: str
    x: Sequence[float]
    y: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Figure:
    """What to draw: axis names, whether they are logarithmic (base 2 along x), and the curves."""

    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = True
    log_y: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of one study; `setting` says in words what was run."""

    number: int
    measured: Sequence[Measured]
    figure: Figure
    setting: str
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Refuted when a number lies outside its limits, confirmed when all lie inside, else undecided."""
        held = [number.holds for number in self.measured]
        if False in held:
            return "refuted"
        return "confirmed" if all(held) else "undecided"

    def to_json(self) -> dict[str, Any]:
        """The record, without provenance."""
        entry = explain(str(self.number))
        return {
            "number": self.number,
            "name": entry.name,
            "claim": entry.title,
            "expected": entry.expected,
            "verdict": self.verdict,
            "measured": [number.to_json() for number in self.measured],
            "setting": self.setting,
            "note": self.note,
            "command": f"python papers/residual_scaling {self.number}",
            "figure": _figure_json(self.figure),
            **self.extra,
        }


@dataclass(frozen=True)
class Table:
    """The result of a study that gives a table: `sentence` says what each row is, `setting` in words what was run."""

    name: str
    sentence: str
    rows: Sequence[dict[str, str]]
    setting: str

    def to_json(self) -> dict[str, Any]:
        """The record, without provenance."""
        return {
            "sentence": self.sentence,
            "table": list(self.rows),
            "setting": self.setting,
            "command": f"python papers/residual_scaling {self.name}",
        }


def over_seeds(what: str, values: Sequence[float], limits: Interval) -> Measured:
    """The mean over seeds with its 95 % interval by Student's t."""
    found = estimate.over_seeds(values)
    return Measured(what, found.value, found.interval or (-ABOVE, ABOVE), len(values), limits)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least squares of log y over log x: the exponent of a power law."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def about(value: float, tolerance: float) -> Interval:
    """Limits on both sides of a value."""
    return value - tolerance, value + tolerance


def _figure_json(figure: Figure) -> dict[str, Any]:
    lines = [
        {"label": line.label, "x": list(line.x), "y": [[_short(value) for value in row] for row in line.y]}
        for line in figure.lines
    ]
    return {"x": figure.x, "y": figure.y, "log_x": figure.log_x, "log_y": figure.log_y, "lines": lines}


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
