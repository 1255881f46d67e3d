"""Test a plan at sizes between proxy and target within a stated budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loopscale.errors import UserError
from loopscale.records import Plan, write_record
from loopscale.study import Executor, LocalProcesses, Observer, Silent, UserCode, check_named, driven
from loopscale.tune.advice import after_verifying, if_bounded
from loopscale.tune.beside import SHARE, run_listed
from loopscale.tune.findings import Checks, Probe, findings, flops_of, jobs_of, probes
from loopscale.tune.regret import TOLERANCE
from loopscale.tune.run import NAME, read_plan
from loopscale.tune.settings import TuneSettings

MADE = "the plan in {} was tuned"


def verify(
    folder: Path,
    checks: Checks,
    *,
    user_code: UserCode | None = None,
    executor: Executor | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Verify the plan in `folder`; returns, and adds to `plan.json`, what was found.

    At each size the plan is trained beside rates (then strengths) an octave below and above; the regret is read off the
    parabola, paired over seeds, and its trend over the axis is carried to the target. The checks that do not fit the budget
    are listed, not skipped. Stop it anywhere and call it again.

    user_code: the user's model or objective that was tuned. A folder may come from anywhere, so code that it names runs
    only when the caller names it too.

    Raises `UserError`: no plan in the folder, code that is not named or changed since, a size outside proxy..target, a
    budget that holds no check (says its cost), a tolerance that is no positive number.
    """
    plan = read_plan(folder)
    settings, runner = TuneSettings.from_json(plan["settings"]), executor or LocalProcesses()
    check_named(folder, settings.user_code, user_code, MADE)
    asked = Asked(settings, dict(plan["proxy"]["values"]), checks.seeds, plan["cost"])
    wished = probes(settings, checks.loops, checks.layers, checks.widths, checks.joint)
    allowance = asked.allowance(checks, runner.slots)
    taken, left, spent = asked.affordable(wished, allowance, runner.slots)
    with driven(folder, NAME, "tuning"):
        trials = run_listed(folder, "verify", asked.jobs(taken), runner, observer or Silent())
        report = {
            "sizes": checks.sizes(),
            "seeds": checks.seeds,
            "flops": spent,
            "allowed_flops": allowance,
            "share_of_direct": (spent + plan["cost"]["tune_flops"]) / plan["cost"]["direct_flops"],
        }
        report |= findings(plan, checks, taken, left, trials, report["share_of_direct"])
        report["says"] += if_bounded(folder, settings, report)
        report["next"] = _next(folder, plan, report, checks)
        plan["verification"] = report
        write_record(folder / "plan.json", Plan.model_validate(plan))
    return report


def _next(folder: Path, plan: dict[str, Any], report: dict[str, Any], checks: Checks) -> str:
    """Say what to do now; these checks with more seeds go in a share that holds them."""
    more = replace(checks, seeds=max(3, 2 * checks.seeds))
    sizes = (("--loops", more.loops), ("--layers", more.layers), ("--width", more.widths))
    said = [word for name, counts in sizes if counts for word in (name, ",".join(map(str, counts)))]
    said += ["--joint"] if more.joint else []
    said += ["--tolerance", f"{more.tolerance:g}"] if more.tolerance != TOLERANCE else []
    share = max(SHARE, share_of(plan, more))
    settings = TuneSettings.from_json(plan["settings"])
    return after_verifying(folder, settings, report, *said, "--seeds", str(more.seeds), share=share)


def share_of(plan: dict[str, Any], checks: Checks) -> float:
    """Return the least share of a direct sweep, in hundredths, in which `verify` runs all these checks.

    Raises `UserError` as `verify` does for a size outside proxy..target.
    """
    settings, cost = TuneSettings.from_json(plan["settings"]), plan["cost"]
    asked = Asked(settings, dict(plan["proxy"]["values"]), checks.seeds, cost)
    wished = probes(settings, checks.loops, checks.layers, checks.widths, checks.joint)
    spent: float = asked.whole(wished) + cost["tune_flops"]
    return math.ceil(100 * spent / float(cost["direct_flops"]) + 1e-9) / 100


@dataclass(frozen=True)
class Asked:
    """Price checks: the settings, the plan's values, the seeds of each point, and what tuning cost."""

    settings: TuneSettings
    center: dict[str, float]
    seeds: int
    cost: dict[str, Any]

    def allowance(self, checks: Checks, slots: int) -> float:
        """Return the FLOPs that may be spent: by time, or by the share of a direct sweep that tuning left."""
        if checks.budget_seconds is None:
            return float(checks.share * self.cost["direct_flops"] - self.cost["tune_flops"])
        return float(checks.budget_seconds * slots * self.cost["tune_flops"] / max(self.cost["seconds"], 1e-9))

    def affordable(
        self, wished: list[Probe], allowance: float, slots: int
    ) -> tuple[list[Probe], list[tuple[Probe, float]], float]:
        """Return the probes that fit, in order; those that do not, with their FLOPs; what is spent.

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
        """Count the FLOPs of all these probes."""
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
        """Map key to (cell, config) for every trial of these probes."""
        wanted: dict[str, tuple[Any, Any]] = {}
        for probe in taken:
            wanted.update(jobs_of(self.settings, probe, self.center, self.seeds))
        return wanted
