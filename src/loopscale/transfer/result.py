"""From a study to `result.json`: per rule the optima, slope, regret and verdict, the rules compared, plus provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopscale.parameterization import get_rule
from loopscale.records import Estimate, Interval, Result, write_record
from loopscale.study import Executor, Observer, Page, overrides
from loopscale.transfer.advice import Commands, missing_rates, next_step
from loopscale.transfer.estimate import Losses, Optimum, best_rate, fit_optimum, paired
from loopscale.transfer.plan import Arm, StudyPlan
from loopscale.transfer.presets import get_preset
from loopscale.transfer.study import Study
from loopscale.transfer.verdict import (
    Beside,
    Verdict,
    does_looping_pay,
    fit_slope,
    judge,
    one_shot_regret,
    sentence,
    unbracketed,
)


@dataclass(frozen=True)
class Curves:
    """What one rule's trials say, by loops; slope None: not bracketed, regret None: the tuned rate diverged."""

    losses: dict[int, Losses]
    optima: dict[int, Optimum]
    slope: Estimate | None
    regret: Estimate | None

    @classmethod
    def fit(cls, losses: dict[int, Losses]) -> Curves:
        """Fit every arm; `losses` maps loops to those of the arm."""
        fitted = {loops: fit_optimum(known) for loops, known in sorted(losses.items())}
        optima = {loops: optimum for loops, optimum in fitted.items() if optimum is not None}
        first, last = min(losses), max(losses)
        slope = fit_slope(optima) if len(optima) == len(losses) else None
        regret = one_shot_regret(losses[last], optima[last], best_rate(losses[first])) if last in optima else None
        return cls(losses, optima, slope, regret)


def summarise(study: Study, provenance: dict[str, Any]) -> dict[str, Any]:
    """Make the whole result of a finished study, as `result.json` keeps it."""
    plan, strengths = study.plan, {rule: study.tuned_strength(rule) for rule in study.plan.rules}
    arms = {rule: {loops: Arm(rule, strengths[rule], loops) for loops in sorted(plan.loops)} for rule in plan.rules}
    do = commands_of(study)
    found = {rule: Curves.fit({n: study.losses(arm) for n, arm in by_loops.items()}) for rule, by_loops in arms.items()}
    rules = {
        rule: {
            "strength": strengths[rule],
            **rule_json(rule, curves, do),
            "applied": {str(loops): plan.prescription(arm) for loops, arm in arms[rule].items()},
        }
        for rule, curves in found.items()
    }
    return {
        "preset": plan.preset,
        **({} if plan.user_code is None else {"user_code": plan.user_code.place}),
        "sentence": overall(rules),
        "rules": rules,
        "paired": compared(found),
        **_pays(study, found[plan.rules[0]]),
        **_outer(study),
        **_early(study),
        "loops": sorted(plan.loops),
        "strengths": list(plan.strengths),
        "by_strength": _by_strength(study),
        "provenance": {**provenance, "seeds": list(range(plan.seeds))},
    }


def failed(result: dict[str, Any]) -> list[str]:
    """Return the rules that claim to transfer and drift: the command then exits with 1."""
    return [name for name, rule in result["rules"].items() if rule["claims_transfer"] and rule["verdict"] == "drifts"]


def overall(rules: Mapping[str, Mapping[str, Any]]) -> str:
    """Say it in one sentence over all rules."""
    kinds: tuple[tuple[Verdict, str], ...] = (
        ("transfers", "The best learning rate stands still over loops {}"),
        ("drifts", "it drifts {}"),
        ("undecided", "the data do not decide {}"),
    )
    parts = []
    for verdict, text in kinds:
        names = [name for name, rule in rules.items() if rule["verdict"] == verdict]
        if names:
            scaled = [name for name in names if name != "none"]
            listed = ", ".join([*scaled[:-2], " and ".join(scaled[-2:])])
            spoken = [f"{'for' if verdict == 'undecided' else 'with'} {listed}"] if scaled else []
            if len(scaled) < len(names):
                spoken.append("without a scale (rule none)")
            parts.append(text.format((", and " if len(scaled) > 1 else " and ").join(spoken)))
    joined = "; ".join(parts)
    return joined[:1].upper() + joined[1:] + "."


def compared(found: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """Compare the first rule with each other one, paired over seeds: slope, and loss at the largest N at its best rate."""
    (name, first), *others = found.items()
    return [_compared((name, other), first, curves) for other, curves in others]


def _compared(rules: tuple[str, str], first: Curves, second: Curves) -> dict[str, Any]:
    """Return differences first - second; null where an optimum is not bracketed."""
    last = max(first.losses)
    ends = (first.optima.get(last), second.optima.get(last))
    slope = paired(first.slope, second.slope) if first.slope and second.slope else None
    loss = paired(ends[0].at_optimum, ends[1].at_optimum) if ends[0] and ends[1] else None
    parts = []
    if slope:
        parts.append(f"slope {slope.value:+.2f} octaves per doubling of loops{slope.within('+.2f')}")
    if loss:
        parts.append(f"loss at N = {last} {loss.value:+.3f} nats{loss.within('+.3f')}")
    other = "no scale (rule none)" if rules[1] == "none" else rules[1]
    said = f"{rules[0]} minus {other}, paired over seeds: {', '.join(parts) or 'an optimum is not bracketed'}."
    numbers = {**_estimate_json("slope", slope), **_estimate_json("loss", loss)}
    return {"rules": list(rules), "loops": last, "sentence": said, **numbers}


def _pays(study: Study, first: Curves) -> dict[str, Any]:
    """Compare the first rule at the largest N with one loop, where that was trained."""
    plan, arms, last = study.plan, study.beside(), max(first.losses)
    if arms is None or last == 1 or last not in first.optima:
        return {}
    one, longer = fit_optimum(study.losses(arms[0])), arms[1]
    if one is None:
        return {}
    long = {} if longer is None else study.losses(longer)
    rate = best_rate(long) if long else 0.0
    lowest = study.best_strength(plan.rules[0], last) == min(plan.strengths)
    beside = Beside(
        last,
        plan.base.train.steps,
        first.optima[last].losses,
        one.losses,
        [loss for (at, _), loss in sorted(long.items()) if at == rate],
        0 if longer is None else longer.steps,
        at_lower_end=lowest and len(plan.strengths) > 1,
        counted="visits" if plan.user_code else "FLOPs",
    )
    return {"pays": does_looping_pay(beside).model_dump(mode="json", exclude_unset=True)}


def _early(study: Study) -> dict[str, Any]:
    """Say what the early end of hopeless trials saved."""
    ended = [trial for trial in study.trials.values() if trial.stopped]
    if not ended:
        return {}
    steps = study.plan.base.train.steps
    saved = sum(trial.seconds * (steps / max(1, trial.steps) - 1) for trial in ended)
    share = saved / (saved + sum(trial.seconds for trial in study.trials.values()))
    said = f"{len(ended)} of {len(study.trials)} trials were hopeless and ended early: {share:.0%} of the time saved."
    return {"early": said}


def _outer(study: Study) -> dict[str, Any]:
    """Say which outer rate the pilot found, and what it cost."""
    pilot, rate = study.plan.pilot, study.outer_rate()
    if pilot is None or rate is None:
        return {}
    trials = [trial for trial in study.trials.values() if trial.cell.swept == pilot.swept]
    seconds, every = sum(t.seconds for t in trials), sum(t.seconds for t in study.trials.values())
    tuned = study.tuned_rate(pilot)
    factor = "" if tuned is None else f", {rate / tuned:.3g} times the hidden rate tuned there (optim.outer_lr)"
    said = (
        f"Embedding, readout and final norm keep the rate {rate:.4g}{factor}, found at N = {pilot.loops} by a pilot of "
        f"{len(trials)} trials, {seconds / max(every, 1e-9):.1%} of the trials' time."
    )
    return {"outer": {"rate": rate, "loops": pilot.loops, "trials": len(trials), "seconds": seconds, "sentence": said}}


def commands_of(study: Study) -> Commands:
    """Return the command lines that the study's verdicts may advise."""
    plan, demo = study.plan, get_preset("demo").base()
    loops = tuple(sorted(plan.loops))
    sets = tuple(overrides(plan.base, demo))
    return Commands(study.folder, loops, plan.rules, plan.base.model.layers, plan.user_code, sets)


def rule_json(rule: str, curves: Curves, do: Commands | None = None) -> dict[str, Any]:
    """Return the verdict on one rule and the numbers that it rests on."""
    optima, slope, regret = curves.optima, curves.slope, curves.regret
    claims = get_rule(rule).claims_transfer
    verdict: Verdict = judge(slope, regret)
    open_at = unbracketed(curves.losses, optima)
    said = sentence(rule, verdict, slope, regret, optima, open_at) if optima else f"{rule}: every trial diverged."
    return {
        "claims_transfer": claims,
        "verdict": verdict,
        "sentence": said,
        "next": next_step(rule, verdict, slope, regret, missing_rates(curves.losses, optima), do or Commands()),
        **_estimate_json("slope", slope),
        **_estimate_json("regret", regret),
        "optima": {str(loops): _optimum_json(optimum) for loops, optimum in optima.items()},
        "points": {str(loops): points(known) for loops, known in curves.losses.items()},
    }


def _estimate_json(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {name: None, f"{name}_interval": None}
    return {name: estimate.value, f"{name}_interval": _ends(estimate.interval)}


def _optimum_json(optimum: Optimum) -> dict[str, Any]:
    return {
        "lr": optimum.lr,
        "lr_interval": _ends(optimum.interval()),
        "loss": optimum.loss,
        "loss_interval": _ends(optimum.loss_interval()),
        "n_seeds": optimum.n_seeds,
        "edge": optimum.edge,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def points(losses: Losses) -> list[dict[str, Any]]:
    """Return the mean loss and the losses by seed of every rate, ascending, as a record holds them."""
    rates = sorted({rate for rate, _ in losses})
    return [_point(rate, [loss for (at, _), loss in sorted(losses.items()) if at == rate]) for rate in rates]


def _point(rate: float, losses: list[float]) -> dict[str, Any]:
    mean = sum(losses) / len(losses)
    return {
        "lr": rate,
        "loss": mean if math.isfinite(mean) else None,
        "losses": [loss if math.isfinite(loss) else None for loss in losses],
    }


def _by_strength(study: Study) -> dict[str, dict[str, dict[str, Any]]]:
    """Return rule -> loops -> strength -> the optimum there; empty unless strengths were swept."""
    if len(study.plan.strengths) == 1:
        return {}
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in study.plan.arms:
        optimum = fit_optimum(study.losses(arm))
        if optimum is not None:
            table.setdefault(arm.rule, {}).setdefault(str(arm.loops), {})[f"{arm.strength:g}"] = _optimum_json(optimum)
    return table


def run_study(
    plan: StudyPlan,
    folder: Path,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
    page: Callable[[Study], Page] | None = None,
) -> dict[str, Any]:
    """Run or continue the study in `folder` and write `result.json`; returns its content.

    `page` makes the picture of the running study, such as `loopscale.report.StudyPage`.

    Stop it anywhere and call it again, with more rules, loops, rates, strengths or seeds if you like: finished trials are
    read from disk.

    Raises `UserError` for a folder of another study or one that another process drives, bad data, workers that keep dying,
    or when every trial raises.
    """
    with Study.run(folder, plan, executor, observer, page) as (study, provenance):
        result = summarise(study, provenance)
        write_record(folder / "result.json", Result.model_validate(result))
    return result
