"""Find the optimum on the proxy: explore with one seed, then race the best candidates over the seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from loopscale.study import Executor, content_hash, lanes, thresholds
from loopscale.study.executor import Job
from loopscale.tune.ledger import Ledger
from loopscale.tune.race import Table, beaten, leader, paired_noise
from loopscale.tune.settings import TuneSettings, bounds, start, to_point, to_values
from loopscale.tune.surface import Vertex, fit_surface

CANDIDATES = 3
LEAST = 3
AHEAD = 4  # stacks have many slots: at most a quarter of the points is asked for before any of them is known
Values = dict[str, float]
OnRecord = Callable[[dict[str, Any], int], None]


@dataclass(frozen=True)
class Budget:
    """How long may be spent in all, in seconds of this machine (None: no limit), and what one trial is thought to take.

    With `started` (of `time.monotonic`) the clock counts from there on, start-up and waiting included, on top of the
    `earlier` seconds that trials took before it. Three trials always begin: fewer make no plan.
    """

    seconds: float | None
    trial_seconds: float
    started: float | None = None
    earlier: float = 0.0

    def one(self, records: list[dict[str, Any]]) -> float:
        """Seconds of one trial: of those that ended, once there are three."""
        whole = [record["seconds"] for record in records if not record.get("stopped")]
        return fmean(whole) if len(whole) > 2 else self.trial_seconds

    def allows(self, records: list[dict[str, Any]], running: int, slots: int) -> bool:
        """Whether one more trial fits: all that ran and runs, spread over the slots."""
        if self.seconds is None:
            return True
        counted = (_seconds(records) + (running + 1) * self.one(records)) / slots
        clock = self._clock(slots) + self.one(records) if len(records) + running >= LEAST else 0.0
        return max(counted, clock) <= self.seconds

    def _clock(self, slots: int) -> float:
        return 0.0 if self.started is None else self.earlier / slots + time.monotonic() - self.started

    def explores(self, records: list[dict[str, Any]], slots: int, most: int) -> int:
        """How many points to explore: seven tenths of what start-up left of the budget, at least 3 and at most `most`."""
        if self.seconds is None:
            return most
        left = self.seconds - max(0.0, self._clock(slots) - _seconds(records) / slots)
        return min(most, max(LEAST, int(0.7 * left * slots / max(self.one(records), 1e-6))))


def _seconds(records: list[dict[str, Any]]) -> float:
    return float(sum(record["seconds"] for record in records))


class Search:
    """Drives an executor through both phases; several processes may search the same ledger.

    `kept`: records by key that this folder holds, though the ledger may not: they are told, and not run again.
    `keep(record)` comes before the ledger is told, `on_record(record, finished)` after.
    """

    def __init__(
        self,
        settings: TuneSettings,
        ledger: Ledger,
        budget: Budget,
        kept: dict[str, dict[str, Any]],
        keep: Callable[[dict[str, Any]], None],
        on_record: OnRecord,
    ) -> None:
        self.settings, self.ledger, self.budget, self.kept = settings, ledger, budget, kept
        self.keep, self.on_record = keep, on_record
        self._mine: dict[str, tuple[Any, Job]] = {}

    def run(self, executor: Executor) -> None:
        """Until every trial that fits the budget is finished, by this process or another."""
        self._slots, self._lanes, ledger = executor.slots, lanes(executor), self.ledger
        ledger.recover()
        if not ledger.explored.get_trials(deepcopy=False):
            ledger.enqueue(to_point(start(self.settings)))
        with ledger.alive():
            while True:
                for record in executor.run(self._next_jobs):
                    self._ended(record)
                if not ledger.running(ledger.explored, ledger.repeats):
                    return
                time.sleep(0.5)  # another process is at the last ones
                ledger.recover()

    def _ended(self, record: dict[str, Any]) -> None:
        trial, _ = self._mine.pop(record["key"])
        self.keep(record)
        self.ledger.tell(trial, record)
        self.on_record(record, len(self.ledger.records()))

    def _next_jobs(self) -> list[Job]:
        while len(self._mine) < self._slots and self._fits():
            job = self._explore() or self._repeat()
            if job is None:
                break
        return [job for _, job in self._mine.values()]

    def _fits(self) -> bool:
        return self.budget.allows(list(self.ledger.records().values()), len(self._mine), self._lanes)

    def _explore(self) -> Job | None:
        most = max(self._lanes, self.settings.trials // AHEAD)
        while True:
            records, running = self.ledger.explored_records(), self.ledger.running(self.ledger.explored)
            wanted = self.budget.explores(records, self._lanes, self.settings.trials)
            if len(self._mine) >= most or len(records) + running >= wanted:
                return None
            trial, point = self.ledger.ask()
            values = to_values(point)
            known = self._known(self._key(values, 0))
            if known is None:
                return self._claim(trial, values, 0, thresholds(records, self._steps(values)), True)
            self.ledger.tell(trial, known)  # it counts as explored, and is not run again

    def _repeat(self) -> Job | None:
        if self.ledger.running(self.ledger.explored):
            return None  # the candidates are known only when every point is explored
        records = list(self.ledger.records().values())
        for values, seed in wanted_repeats(self.settings, self.ledger.explored_records(), records):
            key = self._key(values, seed)
            trial = self.ledger.claim(self.ledger.repeats, key, values=values, seed=seed)
            if trial is not None and key in self.kept:
                self.ledger.tell(trial, self.kept[key])
                return self._repeat()
            if trial is not None:
                return self._claim(trial, values, seed, [], False)
        return None

    def _known(self, key: str) -> dict[str, Any] | None:
        return self.ledger.records().get(key) or self.kept.get(key)

    def _steps(self, values: Values) -> int:
        return self.settings.config(self.settings.proxy, values).train.steps

    def _key(self, values: Values, seed: int) -> str:
        config = self.settings.config(self.settings.proxy, values, seed)
        return content_hash(self.settings.job_config(config))

    def _claim(self, trial: Any, values: Values, seed: int, stop: list[list[float]], explored: bool) -> Job:
        config = self.settings.config(self.settings.proxy, values, seed)
        record = self.settings.job_config(config)
        key, size = content_hash(record), config.model
        cell = {"rule": size.rule, "loops": size.loops, "seed": seed, "values": values, "explored": explored}
        cell.update(lr=config.optim.lr, strength=size.strength)
        if key in self._mine:  # the sampler asked for the same point twice at once
            key = f"{key}-{trial.number}"
        job = (key, cell, {**record, "stop": stop})
        self._mine[key] = (trial, job)
        return job


def losses_of(records: list[dict[str, Any]]) -> dict[tuple[tuple[str, float], ...], Table]:
    """values -> seed -> loss, inf when diverged or stopped."""
    table: dict[tuple[tuple[str, float], ...], Table] = {}
    for record in records:
        values = tuple(sorted(record["cell"]["values"].items()))
        loss = math.inf if record["loss"] is None else record["loss"]
        table.setdefault(values, {})[record["cell"]["seed"]] = loss
    return table


def surface(settings: TuneSettings, explored: list[dict[str, Any]]) -> Vertex | None:
    """The quadratic surface over the explored points; a point that was asked for twice counts once."""
    names = list(bounds(settings))
    finite = {record["key"]: record for record in explored if record["loss"] is not None}.values()
    points = [[to_point(record["cell"]["values"])[name] for name in names] for record in finite]
    return fit_surface(points, [record["loss"] for record in finite]) if finite else None


def candidates(settings: TuneSettings, explored: list[dict[str, Any]]) -> list[Values]:
    """The minimum of the fitted surface, and the best explored points."""
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
    """The (values, seed) to run next: a round a seed over the candidates that are still in the race.

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
