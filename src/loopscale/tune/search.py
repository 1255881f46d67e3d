"""Find the optimum on the proxy: explore with one seed, then race the best candidates over the seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from loopscale.transfer import Executor, content_hash, thresholds
from loopscale.transfer.executor import Job
from loopscale.tune.settings import TuneSettings, bounds, start, to_point, to_values
from loopscale.tune.storage import Ledger
from loopscale.tune.surface import Vertex, fit_surface

CANDIDATES = 3
Values = dict[str, float]
OnRecord = Callable[[dict[str, Any], int], None]


@dataclass(frozen=True)
class Budget:
    """How long may be spent in all, in seconds of this machine (None: no limit), and what one trial takes."""

    seconds: float | None
    trial_seconds: float

    def allows(self, spent: float, running: int, slots: int) -> bool:
        """Whether one more trial fits: all that ran and runs, spread over the slots."""
        return self.seconds is None or (spent + (running + 1) * self.trial_seconds) / slots <= self.seconds


class Search:
    """Drives an executor through both phases; several processes may search the same ledger."""

    def __init__(self, settings: TuneSettings, ledger: Ledger, budget: Budget, on_record: OnRecord) -> None:
        self.settings, self.ledger, self.budget, self.on_record = settings, ledger, budget, on_record
        self._mine: dict[str, tuple[Any, Job]] = {}

    def run(self, executor: Executor) -> None:
        """Until every trial that fits the budget is finished, by this process or another."""
        self._slots = executor.slots
        self.ledger.recover()
        if not self.ledger.explored.get_trials(deepcopy=False):
            self.ledger.enqueue(to_point(start(self.settings)))
        with self.ledger.alive():
            while True:
                for record in executor.run(self._next_jobs):
                    trial, _ = self._mine.pop(record["key"])
                    self.ledger.tell(trial, record)
                    self.on_record(record, len(self.ledger.records()))
                if not self.ledger.running():
                    return
                time.sleep(0.5)  # another process is at the last ones
                self.ledger.recover()

    def _next_jobs(self) -> list[Job]:
        while len(self._mine) < self._slots and self._fits():
            job = self._explore() or self._repeat()
            if job is None:
                break
        return [job for _, job in self._mine.values()]

    def _fits(self) -> bool:
        spent = sum(record["seconds"] for record in self.ledger.records().values())
        return self.budget.allows(spent, len(self._mine), self._slots)

    def _explore(self) -> Job | None:
        records, running = self.ledger.explored_records(), self._running_explored()
        wanted = self.settings.trials
        if self.budget.seconds is not None:  # seven tenths of the budget explore, the rest repeats
            wanted = min(wanted, max(3, int(0.7 * self.budget.seconds * self._slots / self.budget.trial_seconds)))
        if len(records) + running >= wanted:
            return None
        trial, point = self.ledger.ask()
        values = to_values(point)
        known = self.ledger.records().get(self._key(values, 0))
        if known is not None:  # asked for again: it counts as explored, and is not run again
            self.ledger.tell(trial, known)
            return self._explore()
        return self._claim(trial, values, 0, thresholds(records, self._steps(values)), True)

    def _running_explored(self) -> int:
        return sum(study is self.ledger.explored for study, _ in self.ledger._claimed())

    def _repeat(self) -> Job | None:
        if self._running_explored():
            return None  # the candidates are known only when every point is explored
        records = list(self.ledger.records().values())
        for values, seed in wanted_repeats(self.settings, self.ledger.explored_records(), records):
            key = self._key(values, seed)
            trial = self.ledger.ask_repeat(key, {"values": values, "seed": seed})
            if trial is not None:
                return self._claim(trial, values, seed, [], False)
        return None

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


def losses_of(records: list[dict[str, Any]]) -> dict[tuple[tuple[str, float], ...], dict[int, float]]:
    """values -> seed -> loss, inf when diverged or stopped."""
    table: dict[tuple[tuple[str, float], ...], dict[int, float]] = {}
    for record in records:
        values = tuple(sorted(record["cell"]["values"].items()))
        loss = math.inf if record["loss"] is None else record["loss"]
        table.setdefault(values, {})[record["cell"]["seed"]] = loss
    return table


def surface(settings: TuneSettings, explored: list[dict[str, Any]]) -> Vertex | None:
    """The quadratic surface over the explored points."""
    names = list(bounds(settings))
    finite = [record for record in explored if record["loss"] is not None]
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

    A candidate is out when its paired difference to the leader exceeds two standard errors.
    """
    known, racing = losses_of(records), candidates(settings, explored)
    for seed in range(settings.seeds):
        tables = [known.get(tuple(sorted(values.items())), {}) for values in racing]
        missing = [(values, seed) for values, table in zip(racing, tables, strict=True) if seed not in table]
        if missing:
            return missing
        racing = [values for values, table in zip(racing, tables, strict=True) if not _beaten(table, tables, seed)]
        if len(racing) == 1 and seed >= 1:
            # The winner alone still gets its other seeds: they are the noise that regrets are measured in.
            continue
    return []


def _beaten(table: dict[int, float], tables: list[dict[int, float]], last: int) -> bool:
    seeds = range(last + 1)
    leader = min(tables, key=lambda other: fmean(other[seed] for seed in seeds))
    differences = [table[seed] - leader[seed] if leader is not table else 0.0 for seed in seeds]
    if not all(map(math.isfinite, differences)):
        return True
    if len(differences) < 2:
        return False
    return fmean(differences) > max(2 * stdev(differences) / math.sqrt(len(differences)), 1e-9)
