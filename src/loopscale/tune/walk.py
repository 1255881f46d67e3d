"""Walk to the valley first, a rate at a time: the search of all values together then begins there, in a box of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loopscale.records import Trial
from loopscale.tune.settings import TuneSettings, bounds, start, to_point, to_values

Point = dict[str, float]  # in search coordinates: octaves
RATES = ("lr", "outer_lr")
REACH = 2.0  # octaves of the rates on either side of where the walk ends that are searched


def walk(settings: TuneSettings, explored: Sequence[Trial]) -> tuple[Point, list[Point]]:
    """Return where the walk stands, and the points that it needs next; none when it has ended.

    In octaves: both rates together, then the outer one alone, each until the best has a worse point on either side or the
    range ends. All other values stay as they begin.
    """
    at, ranges = to_point(start(settings)), bounds(settings)
    heights = {_key(trial.cell.values): trial.height for trial in explored}
    rates = [name for name in RATES if name in settings.tuned]
    for moved in filter(None, (rates, rates[1:])):
        best, steps = 0, {-1, 0, 1}
        while True:
            points = {step: _moved(at, moved, step) for step in sorted(steps, key=lambda step: abs(step - best))}
            points = {step: point for step, point in points.items() if all(_inside(point[n], ranges[n]) for n in moved)}
            keys = {step: _key(to_values(point)) for step, point in points.items()}
            known = {step: heights[key] for step, key in keys.items() if key in heights}
            if len(known) < len(points):
                return at, [point for step, point in points.items() if step not in known]
            best = min(known, key=lambda step: (known[step], abs(step)))
            if {best - 1, best + 1} <= steps:
                break
            steps |= {best - 1, best + 1}
        at = points[best]
    return at, []


def box(settings: TuneSettings, at: Point) -> dict[str, tuple[float, float]]:
    """Return the ranges that are searched once the walk has ended: narrower along the rates."""
    return {
        name: (max(low, at[name] - REACH), min(high, at[name] + REACH)) if name in RATES else (low, high)
        for name, (low, high) in bounds(settings).items()
    }


def within(point: Point, ranges: dict[str, tuple[float, float]]) -> bool:
    """Tell whether a point lies in the box, whose ends count: values have four digits."""
    return all(_inside(point[name], ends) for name, ends in ranges.items())


def _inside(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] - 0.01 <= value <= ends[1] + 0.01


def _moved(at: Point, names: Sequence[str], octaves: int) -> Point:
    return {name: value + octaves * (name in names) for name, value in at.items()}


def _key(values: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(values[name] for name in sorted(values))
