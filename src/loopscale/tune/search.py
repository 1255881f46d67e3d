"""Find the optimum on the proxy: explore with one seed, then race the best candidates over the seeds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from loopscale.tune.race import Table, beaten, leader, paired_noise
from loopscale.tune.settings import TuneSettings, bounds, to_point, to_values
from loopscale.tune.surface import Vertex, fit_surface

CANDIDATES = 3
LEAST = 3
Values = dict[str, float]


@dataclass(frozen=True)
class Budget:
    """How long may be spent in all, in seconds of this machine (None: no limit), and what one trial is thought to take.

    With `started` (of `time.monotonic`) the clock counts from there on, start-up and waiting included, on top of the
    `earlier` seconds that trials took before it. Three trials always begin: fewer make no plan. `pays`: how many seeds put
    the target's loops beside one loop, on top of the budget; None: as many as stay within a tenth of a direct sweep.
    """

    seconds: float | None = None
    trial_seconds: float = 0.0
    started: float | None = None
    earlier: float = 0.0
    pays: int | None = None

    def one(self, records: list[dict[str, Any]]) -> float:
        """Return seconds of one trial: of those that ended, once there are three."""
        whole = [record["seconds"] for record in records if not record.get("stopped")]
        return fmean(whole) if len(whole) > 2 else self.trial_seconds

    def allows(self, records: list[dict[str, Any]], running: int, slots: int) -> bool:
        """Say whether one more trial fits: all that ran and runs, spread over the slots."""
        if self.seconds is None:
            return True
        counted = (_seconds(records) + (running + 1) * self.one(records)) / slots
        clock = self._clock(slots) + self.one(records) if len(records) + running >= LEAST else 0.0
        return max(counted, clock) <= self.seconds

    def _clock(self, slots: int) -> float:
        return 0.0 if self.started is None else self.earlier / slots + time.monotonic() - self.started

    def explores(self, records: list[dict[str, Any]], slots: int, most: int) -> int:
        """Say how many points to explore.

        Seven tenths of what start-up left of the budget, at least 3 and at most `most`.
        """
        if self.seconds is None:
            return most
        left = self.seconds - max(0.0, self._clock(slots) - _seconds(records) / slots)
        return min(most, max(LEAST, int(0.7 * left * slots / max(self.one(records), 1e-6))))


def _seconds(records: list[dict[str, Any]]) -> float:
    return float(sum(record["seconds"] for record in records))


def losses_of(records: list[dict[str, Any]]) -> dict[tuple[tuple[str, float], ...], Table]:
    """Return values -> seed -> loss, inf when diverged or stopped."""
    table: dict[tuple[tuple[str, float], ...], Table] = {}
    for record in records:
        values = tuple(sorted(record["cell"]["values"].items()))
        loss = math.inf if record["loss"] is None else record["loss"]
        table.setdefault(values, {})[record["cell"]["seed"]] = loss
    return table


def surface(settings: TuneSettings, explored: list[dict[str, Any]]) -> Vertex | None:
    """Return the quadratic surface over the explored points; a point that was asked for twice counts once."""
    names = list(bounds(settings))
    finite = {record["key"]: record for record in explored if record["loss"] is not None}.values()
    points = [[to_point(record["cell"]["values"])[name] for name in names] for record in finite]
    return fit_surface(points, [record["loss"] for record in finite]) if finite else None


def candidates(settings: TuneSettings, explored: list[dict[str, Any]]) -> list[Values]:
    """Return the minimum of the fitted surface, and the best explored points."""
    ranked = sorted((r for r in explored if r["loss"] is not None), key=lambda record: record["loss"])
    best = [dict(record["cell"]["values"]) for record in ranked]
    vertex = surface(settings, explored)
    if vertex is not None and vertex.predicts:
        at = to_values(dict(zip(bounds(settings), vertex.at, strict=True)))
        best = [at, *best]
    unique: list[Values] = []
    for values in best:
        if all(_apart(values, other) for other in unique):
            unique.append(values)
    return unique[:CANDIDATES]


def _apart(a: Values, b: Values) -> bool:
    first, second = to_point(a), to_point(b)
    return max(abs(first[name] - second[name]) for name in first) > 0.1


def wanted_repeats(
    settings: TuneSettings, explored: list[dict[str, Any]], records: list[dict[str, Any]]
) -> list[tuple[Values, int]]:
    """Return the (values, seed) to run next: a round a seed over the candidates that are still in the race.

    A candidate is out when the leader is better for certain (`beaten`). The winner alone still gets its other seeds: they
    are the noise that regrets are measured in.
    """
    known, racing = losses_of(records), candidates(settings, explored)
    for seed in range(settings.seeds if racing else 0):
        tables = [known.get(tuple(sorted(values.items())), {}) for values in racing]
        missing = [(values, seed) for values, table in zip(racing, tables, strict=True) if seed not in table]
        if missing:
            return missing
        tables = [{s: table[s] for s in range(seed + 1)} for table in tables]
        first, noise = leader(tables), paired_noise(tables)
        racing = [
            v for v, table in zip(racing, tables, strict=True) if table is first or not beaten(table, first, noise)
        ]
    return []
