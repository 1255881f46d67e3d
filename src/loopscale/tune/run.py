"""Run a tuning to its end in a folder: `tune.json`, the trials, `plan.json`, `tuned.toml`.

TUNING/
  tune.json      the settings; the identity of the folder
  trials.jsonl   one line per finished trial
  beside.jsonl   the trials that put the target's loops beside one loop
  plan.json      the tuned values, every value at the target, intervals, what verification found
  tuned.toml     the target's config, for `loopscale train target.toml --from tuned.toml`
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from loopscale.errors import UserError, require
from loopscale.files import write_text
from loopscale.records import Journal, Plan, Trial, TuneRecord, read_record, write_record
from loopscale.study import (
    Executor,
    LocalProcesses,
    Observer,
    Silent,
    UserCode,
    check_named,
    holding,
    run_trials,
    train_command,
    trial_seconds,
)
from loopscale.study.trial import sections
from loopscale.train import TrainConfig, provenance, trial_flops
from loopscale.train.load import stored_config
from loopscale.tune.advice import after_tuning
from loopscale.tune.beside import NAME as BESIDE
from loopscale.tune.beside import Comparison, run_listed
from loopscale.tune.mirror import Mirror
from loopscale.tune.plan import transfer_plan
from loopscale.tune.search import Budget, Search
from loopscale.tune.settings import TuneSettings, start

NAME = "tune.json"


def tune(
    settings: TuneSettings,
    folder: Path,
    *,
    executor: Executor | None = None,
    budget: Budget | None = None,
    storage: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Tune on the proxy and write the plan for the target; returns what `plan.json` holds.

    Stop it anywhere and call it again, with more trials, seeds or a larger target if you like: finished trials are kept.

    The budget counts from its `started` (of `time.monotonic`; default: now), so looking at the model and starting processes
    are in it; trials that have begun are finished. storage: a database in which optuna-dashboard sees the trials too.

    Raises `UserError`: a folder of another tuning or one that another process drives, a budget too small for one trial
    (says its cost), data or a model that cannot be used, a storage that cannot be reached, or no trial that finishes.
    """
    budget = budget or Budget()
    budget = budget if budget.started is not None else replace(budget, started=time.monotonic())
    runner, observer = executor or LocalProcesses(), observer or Silent()
    require("optuna", "sweep")
    description = settings.check(runner)
    observer.checked(description)
    journal = Journal(folder)
    earlier = sum(trial.seconds for trial in journal.trials.values())
    one = first_estimate(settings, journal.trials.values(), budget.seconds, runner.slots)
    mirror = None if storage is None else Mirror(storage, settings)
    with holding(folder, settings, "tuning"):
        journal.read()
        trials = journal.trials
        search = Search(settings, trials, replace(budget, trial_seconds=one, earlier=earlier), runner)

        def record(trial: Trial) -> tuple[int, None]:
            journal.append(trial)  # the file comes first: nothing is lost with the storage
            search.ended(trial)
            if mirror is not None:
                mirror.add(trial)
            return len(trials), None

        run_trials(trials, runner, search.next_job, record, observer)
        if mirror is not None:
            for trial in trials.values():
                mirror.add(trial)
        plan = transfer_plan(settings, list(trials.values()))
        plan["cost"] = costs(settings, list(trials.values()), description.get("vocab_size", 256))
        errors = [trial.error for trial in trials.values() if trial.error is not None]
        plan["provenance"] = {**provenance(), "data": description, "trials": len(trials), "errors": errors}
        plan["next"] = after_tuning(folder, settings, plan)
        _compare_with_one_loop(settings, plan, folder, runner, observer, budget)
        _keep_verification(folder, plan)
        write_record(folder / "plan.json", Plan.model_validate(plan))
        config = TrainConfig.model_validate(plan["target"]["config"])
        if settings.user_code is not None and settings.user_code.kind == "model":
            config = config.using(settings.user_code.place)
        write_text(folder / "tuned.toml", _heading(settings, folder, plan) + config.to_toml())
    return plan


def _compare_with_one_loop(
    settings: TuneSettings, plan: dict[str, Any], folder: Path, runner: Executor, observer: Observer, budget: Budget
) -> None:
    """Add to the plan whether looping pays, and what that costs, where there is something to compare.

    By default as many seeds as fit; with a budget of time, which the search spends, none but those that ran before.
    """
    if settings.target.loops == 1:
        return
    compared = Comparison(settings, plan)
    plan["cost"]["pays_share"] = compared.price(settings.seeds)
    journals = Journal(folder), Journal(folder, BESIDE)
    known = {key for journal in journals for key, trial in journal.trials.items() if not trial.stopped}
    ran = next((n for n in range(settings.seeds, 0, -1) if compared.wanted(n).keys() <= known), 0)
    seeds = budget.pays
    if seeds is None:
        seeds = max(ran, compared.affordable() if budget.seconds is None else 0)
    if seeds:
        trials = run_listed(folder, BESIDE, compared.wanted(seeds), runner, observer)
        plan["pays"] = compared.told(trials, seeds).model_dump(mode="json", exclude_unset=True)


def first_estimate(settings: TuneSettings, trials: Collection[Trial], seconds: float | None, slots: int) -> float:
    """Estimate the seconds of one trial: of those that ran, else measured; 0 without a budget, which then costs nothing.

    Raises `UserError` when the budget holds not even one trial.
    """
    if seconds is None:
        return 0.0
    if trials:
        return fmean(trial.seconds for trial in trials)
    one = trial_seconds(settings.config(settings.proxy, start(settings)), settings.user_code)
    if seconds < one:
        raise UserError(
            f"a budget of {seconds:g} s is too small: one trial takes about {one:.1f} s here, and a useful tuning "
            f"{20 * one / slots:.0f} s: raise --budget, or make the proxy smaller"
        )
    return one


def _heading(settings: TuneSettings, folder: Path, plan: dict[str, Any]) -> str:
    """Return comments on top of tuned.toml: whoever finds the file alone knows what it is."""
    lines = [
        plan["sentence"],
        *plan["says"],
        "Written by loopscale tune; every value with its reason and source is in plan.json.",
    ]
    if settings.user_code is not None and settings.user_code.kind == "model":
        lines.append(f"Train it: {train_command(settings.user_code.place, folder / 'tuned.toml')}")
    elif settings.user_code is not None:
        lines.append(f"The objective is {settings.user_code.place}: `loopscale train` would train the house model.")
    lines += [f"Warning: {said}." for said in plan["provenance"]["data"].get("warnings", [])]
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _keep_verification(folder: Path, plan: dict[str, Any]) -> None:
    """Keep what verification found of a plan that did not change."""
    try:
        old = read_plan(folder)
    except UserError:  # there is none, or it is damaged: it is written anew, and verification runs no trial twice
        return
    if old.get("verification") and old["target"] == plan["target"]:
        plan["verification"] = old["verification"]


def read_plan(folder: Path) -> dict[str, Any]:
    """Read the plan that a tuning wrote; raises `UserError` for none, a damaged one and one of another version."""
    if not (folder / "plan.json").exists():
        there = "holds no plan.json" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {there}: name the folder that loopscale tune wrote, and finished")
    plan: dict[str, Any] = read_record(folder / "plan.json", Plan).model_dump(mode="json", exclude_unset=True)
    return plan


def kept_settings(folder: Path, named: UserCode | None) -> TuneSettings:
    """Return the settings of the tuning in `folder`, which goes on; `named`: the user's code that the caller names.

    Raises `UserError` for a damaged file, and for code that is not named, or changed since.
    """
    settings = TuneSettings.from_record(read_record(folder / NAME, TuneRecord))
    check_named(folder, settings.user_code, named, "the tuning in {} was made")
    return settings


def costs(settings: TuneSettings, trials: Sequence[Trial], vocab_size: int) -> dict[str, Any]:
    """Count the FLOPs spent, and those of a sweep of as many trials at the target."""
    seconds, users = sum(trial.seconds for trial in trials), settings.user_code is not None
    spent = sum(_flops_of(trial, vocab_size, users) for trial in trials)
    target = trial_flops(settings.config(settings.target, start(settings)), vocab_size, users)
    return {
        "vocab_size": vocab_size,
        "tune_flops": spent,
        "target_trial_flops": target,
        "direct_flops": target * len(trials),
        "share_of_direct": spent / (target * len(trials)),
        "trial_seconds": round(seconds / len(trials), 3),
        "seconds": round(seconds, 3),
        "counted": "N L d^2, for ratios only" if users else "matrix products, forward and backward",
    }


def _flops_of(trial: Trial, vocab_size: int, users: bool) -> float:
    config = stored_config(sections(trial.config)[1], f"trial {trial.key} in trials.jsonl", Trial.FIX)
    return trial_flops(config, vocab_size, users, trial.steps if trial.loss is None else None)
