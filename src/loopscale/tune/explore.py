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


class Sampler:
    """Optuna's Gaussian-process sampler, asked and told in memory; `explored` are the trials of earlier calls."""

    def __init__(self, settings: TuneSettings, explored: list[Record]) -> None:
        self._optuna = optuna = require("optuna", "sweep")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Said among the trials, and nothing to act on: the search is as good, a suggestion takes a little longer.
        logging.getLogger("optuna._gp.batched_lbfgsb").addFilter(_not_greenlet)
        self._ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in bounds(settings).items()}
        self._study = optuna.create_study(
            sampler=optuna.samplers.GPSampler(seed=len(explored), n_startup_trials=5, warn_independent_sampling=False)
        )
        self._worst = -float("inf")
        for record in explored:
            self._study.add_trial(self._frozen(record))
        if not explored:
            self._study.enqueue_trial(to_point(start(settings)))

    def ask(self) -> tuple[Any, Values]:
        """Give a new point, and what `tell` wants to hear of it."""
        trial = self._study.ask(self._ranges)
        return trial, to_values(dict(trial.params))

    def tell(self, trial: Any, record: Record) -> None:
        """Tell how a point was."""
        self._study.tell(trial, self._value(record))

    def _frozen(self, record: Record) -> Any:
        point = to_point(record["cell"]["values"])
        inside = {
            name: min(max(point[name], ends.low), ends.high) for name, ends in self._ranges.items()
        }  # values have four digits
        return self._optuna.trial.create_trial(params=inside, distributions=self._ranges, value=self._value(record))

    def _value(self, record: Record) -> float:
        """Return the loss; else "bad here": a number above the rest, which the model can use.

        Pruned trials it would ask again.
        """
        loss: float | None = record["loss"]
        if loss is None:
            return self._worst + 0.02 if self._worst > -float("inf") else 20.0
        self._worst = max(self._worst, loss)
        return loss


class Search:
    """Gives out both phases' trials while the budget lasts; `records` are those of earlier calls, by key."""

    def __init__(self, settings: TuneSettings, records: dict[str, Record], budget: Budget, executor: Executor) -> None:
        self.settings, self.records, self.budget = settings, records, budget
        self.explored = [record for record in records.values() if record["cell"].get("explored")]
        self._slots = executor.slots
        self._most = max(executor.slots, settings.trials // AHEAD) if executor.batch > 1 else executor.slots
        self._sampler = Sampler(settings, self.explored)
        self._running: dict[str, list[Any]] = {}  # the sampler's trials of each key; none for a repeat

    def next_job(self) -> Job | None:
        """Give out the next trial; None when there is none before a running one has ended."""
        if not self.budget.allows(list(self.records.values()), len(self._running), self._slots):
            return None
        return self._explore() or self._repeat()

    def ended(self, record: Record) -> None:
        """Hear of a trial that ended."""
        self.records[record["key"]] = record
        for trial in self._running.pop(record["key"]):
            self._tell(trial, record)

    def _tell(self, trial: Any, record: Record) -> None:
        self._sampler.tell(trial, record)
        self.explored.append(record)

    def _explore(self) -> Job | None:
        wanted = self.budget.explores(list(self.records.values()), self._slots, self.settings.trials)
        while len(self._running) < self._most and len(self.explored) + sum(map(len, self._running.values())) < wanted:
            trial, values = self._sampler.ask()
            job = self._job(values, 0, True)
            if job[0] in self.records:
                self._tell(trial, self.records[job[0]])  # it counts as explored, and is not run again
            elif job[0] in self._running:  # asked for twice at once
                self._running[job[0]].append(trial)
            else:
                self._running[job[0]] = [trial]
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
