"""Ask for trials at the proxy: points that the sampler chooses, then the best candidates with all seeds."""

from __future__ import annotations

import logging
from typing import Any

from loopscale.errors import require
from loopscale.study import Executor, Job, thresholds
from loopscale.tune.search import Budget, Values, wanted_repeats
from loopscale.tune.settings import TuneSettings, bounds, start, to_point, to_values

AHEAD = 4  # batched executors have much room: at most a quarter of the points is asked for before any of them is known
Record = dict[str, Any]


def ask(settings: TuneSettings, explored: list[Record], running: list[Values]) -> Values:
    """Ask Optuna's Gaussian-process sampler for the next point.

    It follows from what is known alone, the trials that ended and the points that run, so a tuning that was stopped asks
    for what it would have asked for. With several workers the order in which trials end decides too.
    """
    optuna = require("optuna", "sweep")
    if not explored and not running:
        return start(settings)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Said among the trials, and nothing to act on: the search is as good, a suggestion takes a little longer.
    logging.getLogger("optuna._gp.batched_lbfgsb").addFilter(_not_greenlet)
    ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in bounds(settings).items()}
    seed = len(explored) + len(running)
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=5, warn_independent_sampling=False)
    study = optuna.create_study(sampler=sampler)

    def add(values: Values, **more: Any) -> None:
        point = to_point(values)  # values have four digits, so an end of the range may lie just outside
        inside = {name: min(max(point[name], ends.low), ends.high) for name, ends in ranges.items()}
        study.add_trial(optuna.trial.create_trial(params=inside, distributions=ranges, **more))

    for record, height in zip(explored, _heights(explored), strict=True):
        add(record["cell"]["values"], value=height)
    for values in running:
        add(values, state=optuna.trial.TrialState.RUNNING)
    return to_values(dict(study.ask(ranges).params))


def _heights(explored: list[Record]) -> list[float]:
    """Return the losses; where there is none, a number above those before, which the model can use.

    Pruned trials it would ask again.
    """
    heights: list[float] = []
    worst = None
    for record in explored:
        loss: float | None = record["loss"]
        if loss is not None:
            worst = loss if worst is None else max(worst, loss)
        heights.append(loss if loss is not None else 20.0 if worst is None else worst + 0.02)
    return heights


class Search:
    """Gives out both phases' trials while the budget lasts; `records` are those of earlier calls, by key."""

    def __init__(self, settings: TuneSettings, records: dict[str, Record], budget: Budget, executor: Executor) -> None:
        self.settings, self.records, self.budget = settings, records, budget
        self.explored = [record for record in records.values() if record["cell"].get("explored")]
        self._slots = executor.slots
        self._most = max(executor.slots, settings.trials // AHEAD) if executor.batch > 1 else executor.slots
        self._running: dict[str, list[Values]] = {}  # the points asked for, by key; none for a repeat

    def next_job(self) -> Job | None:
        """Give out the next trial; None when there is none before a running one has ended."""
        if not self.budget.allows(list(self.records.values()), len(self._running), self._slots):
            return None
        return self._explore() or self._repeat()

    def ended(self, record: Record) -> None:
        """Hear of a trial that ended."""
        self.records[record["key"]] = record
        self.explored += [record] * len(self._running.pop(record["key"]))

    def _explore(self) -> Job | None:
        wanted = self.budget.explores(list(self.records.values()), self._slots, self.settings.trials)
        while len(self._running) < self._most:
            asked = [values for points in self._running.values() for values in points]
            if len(self.explored) + len(asked) >= wanted:
                break
            values = ask(self.settings, self.explored, asked)
            job = self._job(values, 0, True)
            if job[0] in self.records:
                self.explored.append(self.records[job[0]])  # it counts as explored, and is not run again
                continue
            self._running.setdefault(job[0], []).append(values)
            if len(self._running[job[0]]) == 1:  # else it was asked for twice at once
                return job
        return None

    def _repeat(self) -> Job | None:
        if any(self._running.values()):
            return None  # the candidates are known only when every point is explored
        for values, seed in wanted_repeats(self.settings, self.explored, list(self.records.values())):
            job = self._job(values, seed, False)
            if job[0] not in self._running:
                self._running[job[0]] = []
                return job
        return None

    def _job(self, values: Values, seed: int, explored: bool) -> Job:
        config = self.settings.config(self.settings.proxy, values, seed)
        key, cell, record = self.settings.job(config, values, explored=explored)
        return key, cell, {**record, "stop": thresholds(self.explored, config.train.steps) if explored else []}


def _not_greenlet(record: logging.LogRecord) -> bool:
    return "'greenlet' package is unavailable" not in record.getMessage()
