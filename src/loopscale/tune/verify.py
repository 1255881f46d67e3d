"""Test a plan at sizes between proxy and target within a stated budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopscale.errors import UserError
from loopscale.files import write_json
from loopscale.study import Executor, LocalProcesses, lanes
from loopscale.study.executor import Job
from loopscale.tune.findings import findings
from loopscale.tune.ledger import Ledger
from loopscale.tune.plan import SCHEMA
from loopscale.tune.probes import Probe, flops_of, jobs_of, probes
from loopscale.tune.run import known_trials, read_json, write_trial
from loopscale.tune.settings import TuneSettings
from loopscale.tune.storage import kept, open_storage

OnRecord = Callable[[dict[str, Any], int], None]
SHARE = 0.1  # of the FLOPs of a direct sweep, tuning included


def verify(
    folder: Path,
    *,
    loops: Sequence[int] = (),
    layers: Sequence[int] = (),
    widths: Sequence[int] = (),
    joint: bool = False,
    seeds: int = 1,
    budget_seconds: float | None = None,
    share: float = SHARE,
    executor: Executor | None = None,
    storage: str | None = None,
    on_record: OnRecord = lambda record, count: None,
) -> dict[str, Any]:
    """Verify the plan in `folder`; returns, and adds to `plan.json`, what was found.

    At each size the plan is trained beside rates (then strengths) an octave below and above; the regret is read off the
    parabola, paired over seeds, and its trend over the axis is carried to the target. The checks that do not fit the budget
    (seconds, or by default: tuning and verifying together a tenth of a sweep at the target) are listed, not skipped.
    Stop it anywhere and call it again, here or on another machine that reaches the storage.

    Raises `UserError`: no plan in the folder, a size outside proxy..target, a budget that holds no check (says its cost), a
    storage that cannot be reached.
    """
    plan = read_plan(folder)
    settings, runner = TuneSettings.from_json(plan["settings"]), executor or LocalProcesses()
    asked = Asked(settings, dict(plan["proxy"]["values"]), seeds, plan["cost"])
    wished = probes(settings, loops, layers, widths, joint)
    allowance = asked.allowance(budget_seconds, share, lanes(runner))
    taken, left, spent = asked.affordable(wished, allowance, lanes(runner))
    with kept(storage, folder):
        records = _run(folder, settings, asked.jobs(taken), runner, storage, on_record)
    report = {
        "sizes": {"loops": list(loops), "layers": list(layers), "widths": list(widths), "joint": joint},
        "seeds": seeds,
        "flops": spent,
        "allowed_flops": allowance,
        "share_of_direct": (spent + plan["cost"]["tune_flops"]) / plan["cost"]["direct_flops"],
    }
    report |= findings(plan, settings, taken, left, seeds, records, report["share_of_direct"])
    plan["verification"] = report
    write_json(folder / "plan.json", plan)
    return report


def share_of(plan: dict[str, Any], loops: Sequence[int], layers: Sequence[int], widths: Sequence[int]) -> float:
    """The least share of a direct sweep, in hundredths rounded up, in which `verify` runs all these checks with one seed.

    Raises `UserError` as `verify` does for a size outside proxy..target.
    """
    settings, cost = TuneSettings.from_json(plan["settings"]), plan["cost"]
    asked = Asked(settings, dict(plan["proxy"]["values"]), 1, cost)
    spent: float = asked.whole(probes(settings, loops, layers, widths, False)) + cost["tune_flops"]
    return math.ceil(100 * spent / float(cost["direct_flops"]) + 1e-9) / 100


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan that a tuning wrote; raises `UserError` for none, a damaged one and one of another version."""
    plan = read_json(folder / "plan.json")
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise UserError(f"{folder / 'plan.json'} is of another version: run loopscale tune again, its trials are kept")
    return plan


@dataclass(frozen=True)
class Asked:
    """What checks cost: the settings, the plan's values, the seeds of each point, and what tuning cost."""

    settings: TuneSettings
    center: dict[str, float]
    seeds: int
    cost: dict[str, Any]

    def allowance(self, budget_seconds: float | None, share: float, slots: int) -> float:
        """FLOPs that may be spent: by time, or by the share of a direct sweep that tuning left."""
        if budget_seconds is None:
            return float(share * self.cost["direct_flops"] - self.cost["tune_flops"])
        return float(budget_seconds * slots * self.cost["tune_flops"] / max(self.cost["seconds"], 1e-9))

    def affordable(
        self, wished: list[Probe], allowance: float, slots: int
    ) -> tuple[list[Probe], list[tuple[Probe, float]], float]:
        """The probes that fit, in order; those that do not, with their FLOPs; what is spent.

        Raises `UserError` when none fits but those at the proxy itself.
        """
        taken, left, spent, counted = [], [], 0.0, set[str]()
        for probe in wished:
            keys = set(jobs_of(self.settings, probe, self.center, self.seeds)) - counted
            price = len(keys) * flops_of(self.settings, probe, self.center, self.cost["vocab_size"])
            if spent + price <= allowance:
                taken.append(probe)
                spent += price
                counted |= keys
            else:
                left.append((probe, price))
        if all(probe.axis == "proxy" for probe in taken):
            # The sweep at the proxy along the same value comes first, and must be paid as well.
            first = next(price for probe, price in [*((p, 0.0) for p in taken), *left] if probe.axis == "proxy")
            raise self._none(left, spent + first, slots)
        return taken, left, spent

    def whole(self, wished: list[Probe]) -> float:
        """FLOPs of all these probes."""
        return self.affordable(wished, float("inf"), 1)[2]

    def _none(self, left: list[tuple[Probe, float]], before: float, slots: int) -> UserError:
        probe, price = min((pair for pair in left if pair[0].axis != "proxy"), key=lambda pair: pair[1])
        price += before
        seconds = price * self.cost["seconds"] / self.cost["tune_flops"] / slots
        share = (price + self.cost["tune_flops"]) / self.cost["direct_flops"]
        return UserError(
            f"the budget holds no check: the cheapest, {probe.label}, takes about {seconds:.2g} s, "
            f"with tuning {share:.1%} of a sweep at the target: raise --budget or --share"
        )

    def jobs(self, taken: list[Probe]) -> dict[str, tuple[Any, Any]]:
        """key -> (cell, config) of every trial of these probes."""
        wanted: dict[str, tuple[Any, Any]] = {}
        for probe in taken:
            wanted.update(jobs_of(self.settings, probe, self.center, self.seeds))
        return wanted


def _run(
    folder: Path,
    settings: TuneSettings,
    wanted: dict[str, tuple[Any, Any]],
    executor: Executor,
    storage: str | None,
    on_record: OnRecord,
) -> dict[str, dict[str, Any]]:
    """Run what is missing, together with whoever else verifies this plan; returns the records of all."""
    ledger = Ledger(open_storage(storage, folder), settings)
    records = known_trials(folder, "trials") | known_trials(folder, "verify")
    records = {key: record for key, record in records.items() if not record.get("stopped")}
    mine: dict[str, Any] = {}

    def missing() -> list[str]:
        for key, record in ledger.check_records().items():
            if key in wanted and key not in records:  # another process ran it
                write_trial(folder, record, "verify")
                records[key] = record
        return [key for key in wanted if key not in records]

    def next_jobs() -> list[Job]:
        for key in missing():
            if len(mine) == executor.slots:
                break
            if key not in mine and (trial := ledger.claim(ledger.checks, key)) is not None:
                mine[key] = trial
        return [(key, *wanted[key]) for key in mine]

    ledger.recover()
    with ledger.alive():
        while True:
            for record in executor.run(next_jobs):
                write_trial(folder, record, "verify")
                ledger.tell(mine.pop(record["key"]), record)
                records[record["key"]] = record
                on_record(record, sum(key in records for key in wanted))
            if not missing():
                return records
            time.sleep(0.5)  # another process is at the last ones
            ledger.recover()
