"""Train the target's loops beside one loop, at the proxy's layers and width: does looping pay?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loopscale.records import Journal, Pays, Size, Trial
from loopscale.study import Executor, Observer, run_trials
from loopscale.train import TrainConfig, equal_steps, trial_flops
from loopscale.transfer.verdict import Beside, does_looping_pay
from loopscale.tune.plan import at_lower_end, at_target
from loopscale.tune.settings import TuneSettings

NAME = "beside"  # of the journal; what it holds counts for `verify` too
SHARE = 0.1  # of the FLOPs of a direct sweep: what tuning, this and verifying may take together
FEWEST = 2  # seeds: one shows no noise, so it decides nothing
Jobs = dict[str, tuple[Any, Any]]


class Comparison:
    """The trainings of one tuning that say whether looping pays; all have the values of the plan.

    `target`: the target's loops. `short`: one loop for as many steps. `long`: one loop for as many steps as the target's
    compute lasts, its rate and decay moved by the published rules; None for an objective, whose compute is not known.
    """

    def __init__(self, settings: TuneSettings, plan: dict[str, Any]) -> None:
        self.settings, self.plan, self.values = settings, plan, plan["proxy"]["values"]
        proxy, users = settings.proxy, settings.user_code is not None
        self.target, self.short = proxy.replace(loops=settings.target.loops), proxy.replace(loops=1)
        dear, cheap = (settings.config(size, self.values) for size in (self.target, self.short))
        ratio = equal_steps(dear, cheap, plan["cost"]["vocab_size"], users) / dear.train.steps
        objective = settings.user_code is not None and settings.user_code.kind == "objective"
        self.long: Size | None = None if objective else self.short.replace(steps=round(ratio * proxy.steps))
        self.sizes = [size for size in (self.target, self.long, self.short) if size is not None]

    def config(self, size: Size, seed: int) -> TrainConfig:
        """Return the config of one training."""
        moved = at_target(replace(self.settings, target=self.settings.proxy.replace(steps=size.steps)), self.values)[0]
        return self.settings.config(size, moved if size == self.long else self.values, seed)

    def jobs(self, size: Size, seeds: int) -> Jobs:
        """Map key to (cell, job config), one for each seed, in order."""
        jobs = (self.settings.job(self.config(size, seed), self.values) for seed in range(seeds))
        return {key: (cell, record) for key, cell, record in jobs}

    def wanted(self, seeds: int) -> Jobs:
        """Return the jobs of all three, the dearest first."""
        return {key: job for size in self.sizes for key, job in self.jobs(size, seeds).items()}

    def price(self, seeds: int) -> float:
        """Return the share of a direct sweep that so many seeds cost; what the tuning itself has trained is in it."""
        users, cost = self.settings.user_code is not None, self.plan["cost"]
        one = sum(trial_flops(self.config(size, 0), cost["vocab_size"], users) for size in self.sizes)
        return float(seeds * one / cost["direct_flops"])

    def affordable(self) -> int:
        """Return for how many seeds, up to those of the tuning, all stays within `SHARE` of a direct sweep, or 0."""
        left = SHARE - self.plan["cost"]["share_of_direct"]
        fit = min(self.settings.seeds, math.floor(left / self.price(1)))
        return fit if fit >= FEWEST else 0

    def told(self, trials: Mapping[str, Trial], seeds: int) -> Pays:
        """Compare their losses; every trial has ended."""
        target, short = ([trials[key].height for key in self.jobs(size, seeds)] for size in (self.target, self.short))
        long = [] if self.long is None else [trials[key].height for key in self.jobs(self.long, seeds)]
        size = self.settings.proxy
        beside = Beside(
            self.target.loops,
            size.steps,
            target,
            short,
            long,
            0 if self.long is None else self.long.steps,
            at_lower_end=at_lower_end(self.settings, self.values),
            each=f"both with the values of the plan, at L = {size.layers} and d = {size.width}",
            counted="visits" if self.settings.user_code else "FLOPs",
        )
        return does_looping_pay(beside)


def run_listed(folder: Path, name: str, wanted: Jobs, executor: Executor, observer: Observer) -> dict[str, Trial]:
    """Run what is missing into the journal `name`; return all trials here by key, stopped ones left out."""
    journal = Journal(folder, name)
    others = [Journal(folder, other) for other in ("trials", NAME, "verify") if other != name]
    trials = {key: t for one in (*others, journal) for key, t in one.trials.items() if not t.stopped}
    jobs = iter([(key, *job) for key, job in wanted.items() if key not in trials])

    def record(trial: Trial) -> tuple[int, int]:
        journal.append(trial)
        trials[trial.key] = trial
        finished = len(wanted.keys() & trials.keys())
        return finished, len(wanted) - finished

    run_trials(journal.trials, executor, lambda: next(jobs, None), record, observer)
    return trials
