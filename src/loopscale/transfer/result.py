"""From a study to `result.json`: per rule the optima, slope, regret and verdict, plus provenance."""

from __future__ import annotations

import math
from typing import Any

from loopscale.parameterization import get_rule
from loopscale.transfer.optimum import Optimum, fit_optimum, pooled_noise
from loopscale.transfer.plan import Arm
from loopscale.transfer.search import Losses
from loopscale.transfer.study import Study, best_rate
from loopscale.transfer.verdict import (
    Regret,
    Slope,
    Verdict,
    few_seeds,
    fit_slope,
    judge,
    one_shot_regret,
    sentence,
    unbracketed,
)


def summarise(study: Study, provenance: dict[str, Any]) -> dict[str, Any]:
    """The whole result of a finished study, as `result.json` keeps it."""
    rules = {rule: _rule(study, rule, _tuned_strength(study, rule)) for rule in study.plan.rules}
    return {
        "schema": 1,
        "preset": study.plan.preset,
        **({} if study.plan.own is None else {"own": study.plan.own.place}),
        "sentence": overall(rules),
        "rules": rules,
        "loops": sorted(study.plan.loops),
        "strengths": list(study.plan.strengths),
        "by_strength": _by_strength(study),
        "provenance": {
            **provenance,
            "trials": len(study.trials),
            **({"errors": study.errors()} if study.errors() else {}),
            "seeds": list(range(max(map(study.plan.seeds_at, study.plan.loops)))),
            "seeds_at": {str(n): study.plan.seeds_at(n) for n in sorted(study.plan.loops)},
            "trial_seconds": round(sum(trial["seconds"] for trial in study.trials.values()), 1),
        },
    }


def failed(result: dict[str, Any]) -> list[str]:
    """The rules that claim to transfer and drift: the command then exits with 1."""
    return [name for name, rule in result["rules"].items() if rule["claims_transfer"] and rule["verdict"] == "drifts"]


def overall(rules: dict[str, dict[str, Any]]) -> str:
    """One sentence over all rules."""
    kinds: tuple[tuple[Verdict, str], ...] = (
        ("transfers", "The best learning rate stands still over loops with {}"),
        ("drifts", "it drifts with {}"),
        ("undecided", "the data do not decide for {}"),
    )
    parts = []
    for verdict, text in kinds:
        names = [name for name, rule in rules.items() if rule["verdict"] == verdict]
        if names:
            listed = ", ".join([*names[:-2], " and ".join(names[-2:])])
            parts.append(text.format(listed))
    joined = "; ".join(parts)
    return joined[:1].upper() + joined[1:] + "."


def _tuned_strength(study: Study, rule: str) -> float:
    """lambda is tuned once, at the smallest N: the strength with the smallest loss there."""
    base = min(study.plan.loops)

    def loss(strength: float) -> float:
        optimum = fit_optimum(study.losses(Arm(rule, strength, base)))
        return math.inf if optimum is None else optimum.loss

    return min(study.plan.strengths, key=loss)


def _rule(study: Study, rule: str, strength: float) -> dict[str, Any]:
    arms = {loops: Arm(rule, strength, loops) for loops in sorted(study.plan.loops)}
    losses = {loops: study.losses(arm) for loops, arm in arms.items()}
    prior = pooled_noise(fit_optimum(known) for known in losses.values())
    fitted = {loops: fit_optimum(known, prior=prior) for loops, known in losses.items()}
    optima = {loops: optimum for loops, optimum in fitted.items() if optimum is not None}
    complete = len(optima) == len(arms)
    slope = fit_slope(optima) if complete else None
    regret = _regret(losses, optima, arms)
    alone = few_seeds(optima)
    verdict: Verdict = judge(slope, regret, 1 if alone else 2) if complete else "undecided"
    said = sentence(rule, verdict, slope, regret, optima, unbracketed(losses, optima)) if optima else ""
    return {
        "claims_transfer": get_rule(rule).claims_transfer,
        "verdict": verdict,
        "strength": strength,
        "sentence": said or f"{rule}: every trial diverged.",
        **_slope_json(slope, alone),
        **_regret_json(regret, alone),
        "optima": {str(loops): _optimum_json(optimum) for loops, optimum in optima.items()},
        "points": {str(loops): _points(known) for loops, known in losses.items()},
        "applied": {str(loops): study.plan.prescription(arm) for loops, arm in arms.items()},
    }


def _regret(losses: dict[int, Losses], optima: dict[int, Optimum], arms: dict[int, Arm]) -> Regret:
    first, last = min(arms), max(arms)
    if first not in optima or last not in optima:
        return Regret(None, None, 0.0)
    tuned = best_rate(losses[first])
    best = best_rate(losses[last])
    by_seed = [[loss for (rate, _), loss in sorted(losses[last].items()) if rate == chosen] for chosen in (tuned, best)]
    return one_shot_regret(by_seed[0], by_seed[1], optima[last].noise, optima[last].freedom)


def _slope_json(slope: Slope | None, alone: bool) -> dict[str, Any]:
    interval = list(slope.interval) if slope and not alone else None  # one seed has no interval
    return {"slope": slope.value if slope else None, "slope_interval": interval}


def _regret_json(regret: Regret, alone: bool) -> dict[str, Any]:
    return {
        "regret": regret.value,
        "regret_interval": list(regret.interval) if regret.interval and not alone else None,
        "seed_noise": regret.noise,
    }


def _optimum_json(optimum: Optimum) -> dict[str, Any]:
    return {
        "lr": optimum.lr,
        "lr_interval": None if optimum.edge else list(optimum.interval()),  # an edge is a bound, nothing is fitted
        "loss": optimum.loss,
        "loss_interval": None if optimum.edge else list(optimum.loss_interval()),
        "n_seeds": optimum.n_seeds,
        "edge": optimum.edge,
    }


def _points(losses: Losses) -> list[dict[str, Any]]:
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
    """rule -> loops -> strength -> the optimum there; empty unless strengths were swept."""
    if len(study.plan.strengths) == 1:
        return {}
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in study.plan.arms:
        optimum = fit_optimum(study.losses(arm))
        if optimum is not None:
            table.setdefault(arm.rule, {}).setdefault(str(arm.loops), {})[f"{arm.strength:g}"] = _optimum_json(optimum)
    return table
