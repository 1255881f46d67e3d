"""Find the optimum on the proxy: walk to the valley, explore it with one seed, race the best candidates over the seeds."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from loopscale.errors import require
from loopscale.records import Trial
from loopscale.study import Executor, Job, thresholds
from loopscale.transfer.estimate import student95
from loopscale.tune.settings import TuneSettings, bounds, to_point, to_values
from loopscale.tune.surface import Vertex, fit_surface
from loopscale.tune.walk import box, walk, within

Table = dict[int, float]  # seed -> loss, inf when diverged


@dataclass(frozen=True)
class PairedNoise:
    """Standard deviation in nats of the difference of two trials of one seed; `freedom` is how well it is known."""

    size: float
    freedom: int

    def error(self, count: int) -> float:
        """Return half of the 95 % interval of a mean difference over `count` seeds."""
        return student95(self.freedom) * self.size / math.sqrt(count)


def paired_noise(tables: Sequence[Table]) -> PairedNoise | None:
    """Return the noise of candidates that share seeds: sqrt(2 sum r^2 / freedom).

    r = loss - candidate's mean - seed's mean + mean of all, freedom = (candidates - 1)(seeds - 1): what all candidates owe
    to a seed cancels. Candidates that diverged take no part. None when fewer than two candidates share two seeds.

    >>> round(paired_noise([{0: 2.0, 1: 2.1}, {0: 2.0, 1: 2.3}]).size, 4)
    0.1414
    """
    best: PairedNoise | None = None
    whole = [table for table in tables if table and all(map(math.isfinite, table.values()))]
    for count in sorted({len(table) for table in whole if len(table) > 1}):
        rows = [[table[seed] for seed in sorted(table)[:count]] for table in whole if len(table) >= count]
        freedom = (len(rows) - 1) * (count - 1)
        if freedom > (best.freedom if best else 0):
            best = PairedNoise(math.sqrt(2 * _residuals(rows) / freedom), freedom)
    return best


def _residuals(rows: list[list[float]]) -> float:
    columns = [fmean(column) for column in zip(*rows, strict=True)]
    whole = fmean(columns)
    return sum((x - fmean(row) - column + whole) ** 2 for row in rows for x, column in zip(row, columns, strict=True))


def beaten(table: Table, leader: Table, noise: PairedNoise | None) -> bool:
    """Say whether the leader is better for certain: paired over the seeds both have, at 95 %, or this one diverged."""
    if not all(map(math.isfinite, table.values())):
        return True
    shared = [seed for seed in table if math.isfinite(leader.get(seed, math.inf))]
    if noise is None or len(shared) < 2:
        return False
    gap = fmean(table[seed] - leader[seed] for seed in shared)
    return gap > max(noise.error(len(shared)), 1e-9)


def leader(tables: Sequence[Table]) -> Table:
    """Return the table with the smallest mean among those with the most seeds; one that diverged only if all did."""
    whole = [table for table in tables if all(map(math.isfinite, table.values()))] or tables
    most = max(len(table) for table in whole)
    return min((table for table in whole if len(table) == most), key=lambda table: fmean(table.values()))


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

    def one(self, trials: Collection[Trial]) -> float:
        """Return seconds of one trial: of those that ended, once there are three."""
        whole = [trial.seconds for trial in trials if not trial.stopped]
        return fmean(whole) if len(whole) > 2 else self.trial_seconds

    def allows(self, trials: Collection[Trial], running: int, slots: int) -> bool:
        """Say whether one more trial fits: all that ran and runs, spread over the slots."""
        if self.seconds is None:
            return True
        counted = (_seconds(trials) + (running + 1) * self.one(trials)) / slots
        clock = self._clock(slots) + self.one(trials) if len(trials) + running >= LEAST else 0.0
        return max(counted, clock) <= self.seconds

    def _clock(self, slots: int) -> float:
        return 0.0 if self.started is None else self.earlier / slots + time.monotonic() - self.started

    def explores(self, trials: Collection[Trial], slots: int, most: int) -> int:
        """Say how many points to explore: seven tenths of what start-up left of the budget, from 3 to `most`."""
        if self.seconds is None:
            return most
        left = self.seconds - max(0.0, self._clock(slots) - _seconds(trials) / slots)
        return min(most, max(LEAST, int(0.7 * left * slots / max(self.one(trials), 1e-6))))


def _seconds(trials: Iterable[Trial]) -> float:
    return float(sum(trial.seconds for trial in trials))


def losses_of(trials: Iterable[Trial]) -> dict[tuple[tuple[str, float], ...], Table]:
    """Return values -> seed -> loss, inf when diverged or stopped."""
    table: dict[tuple[tuple[str, float], ...], Table] = {}
    for trial in trials:
        table.setdefault(tuple(sorted(trial.cell.values.items())), {})[trial.cell.seed] = trial.height
    return table


def surface(settings: TuneSettings, explored: Sequence[Trial]) -> Vertex | None:
    """Return the quadratic surface over the explored points; a point that was asked for twice counts once."""
    names = list(bounds(settings))
    finite = {trial.key: trial for trial in explored if trial.loss is not None}.values()
    points = [[to_point(trial.cell.values)[name] for name in names] for trial in finite]
    return fit_surface(points, [trial.height for trial in finite]) if finite else None


def candidates(settings: TuneSettings, explored: Sequence[Trial]) -> list[Values]:
    """Return the minimum of the fitted surface, and the best explored points."""
    ranked = sorted((trial for trial in explored if trial.loss is not None), key=lambda trial: trial.height)
    best = [dict(trial.cell.values) for trial in ranked]
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
    settings: TuneSettings, explored: Sequence[Trial], trials: Iterable[Trial]
) -> list[tuple[Values, int]]:
    """Return the (values, seed) to run next: a round a seed over the candidates that are still in the race.

    A candidate is out when the leader is better for certain (`beaten`). The winner alone still gets its other seeds: they
    are the noise that regrets are measured in.
    """
    known, racing = losses_of(trials), candidates(settings, explored)
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


AHEAD = 4  # batched executors have much room: at most a quarter of the points is asked for before any of them is known


def ask(settings: TuneSettings, explored: Sequence[Trial], running: list[Values]) -> Values | None:
    """Give the next point: of the walk while it lasts, then of Optuna's Gaussian-process sampler; None to wait.

    It follows from what is known alone, the trials that ended and the points that run, so a tuning that was stopped asks
    for what it would have asked for. With several workers the order in which trials end decides too.
    """
    optuna = require("optuna", "sweep")
    at, needed = walk(settings, explored)
    if needed:
        return next((values for values in map(to_values, needed) if values not in running), None)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Said among the trials, and nothing to act on: the search is as good, a suggestion takes a little longer.
    logging.getLogger("optuna._gp.batched_lbfgsb").addFilter(_not_greenlet)
    ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in box(settings, at).items()}
    seed = len(explored) + len(running)
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=5, warn_independent_sampling=False)
    study = optuna.create_study(sampler=sampler)

    def add(values: Values, **more: Any) -> None:
        point = to_point(values)  # values have four digits, so an end of the range may lie just outside
        inside = {name: min(max(point[name], ends.low), ends.high) for name, ends in ranges.items()}
        study.add_trial(optuna.trial.create_trial(params=inside, distributions=ranges, **more))

    for trial, height in zip(explored, _heights(explored), strict=True):
        if within(to_point(trial.cell.values), box(settings, at)):
            add(trial.cell.values, value=height)
    for values in running:
        add(values, state=optuna.trial.TrialState.RUNNING)
    return to_values(dict(study.ask(ranges).params))


def _heights(explored: Sequence[Trial]) -> list[float]:
    """Return the losses; where there is none, a number above those before, so that it is not asked for again."""
    heights, worst = list[float](), -math.inf
    for trial in explored:
        worst = worst if trial.loss is None else max(worst, trial.loss)
        heights.append(trial.loss if trial.loss is not None else 20.0 if worst == -math.inf else worst + 0.02)
    return heights


class Search:
    """Gives out both phases' trials while the budget lasts; `trials` are those that ended, by key, as they end."""

    def __init__(self, settings: TuneSettings, trials: dict[str, Trial], budget: Budget, executor: Executor) -> None:
        self.settings, self.trials, self.budget = settings, trials, budget
        self.explored = [trial for trial in trials.values() if trial.cell.explored]
        self._slots = executor.slots
        self._most = max(executor.slots, settings.trials // AHEAD) if executor.batch > 1 else executor.slots
        self._running: dict[str, list[Values]] = {}  # the points asked for, by key; none for a repeat

    def next_job(self) -> Job | None:
        """Give out the next trial; None when there is none before a running one has ended."""
        if not self.budget.allows(self.trials.values(), len(self._running), self._slots):
            return None
        return self._explore() or self._repeat()

    def ended(self, trial: Trial) -> None:
        """Hear of a trial that ended."""
        self.explored += [trial] * len(self._running.pop(trial.key))

    def _explore(self) -> Job | None:
        wanted = self.budget.explores(self.trials.values(), self._slots, self.settings.trials)
        while len(self._running) < self._most:
            asked = [values for points in self._running.values() for values in points]
            if len(self.explored) + len(asked) >= wanted:
                break
            values = ask(self.settings, self.explored, asked)
            if values is None:
                break
            job = self._job(values, 0, True)
            if job[0] in self.trials:
                self.explored.append(self.trials[job[0]])  # it counts as explored, and is not run again
                continue
            self._running.setdefault(job[0], []).append(values)
            if len(self._running[job[0]]) == 1:  # else it was asked for twice at once
                return job
        return None

    def _repeat(self) -> Job | None:
        if any(self._running.values()):
            return None  # the candidates are known only when every point is explored
        for values, seed in wanted_repeats(self.settings, self.explored, self.trials.values()):
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
