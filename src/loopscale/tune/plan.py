"""From the tuned values to the target: every value there, which rule moved it, why, from where, and its interval."""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from loopscale.errors import UserError
from loopscale.parameterization import Depth, Width, prescription
from loopscale.tune.search import Values, candidates, losses_of, surface
from loopscale.tune.settings import TuneSettings, bounds, to_point, to_values

BATCH = "arXiv:2205.10287"
HORIZON = "arXiv:2409.19913"
DECAY = "arXiv:2405.13698"
EDGE = 0.1  # of the range: an optimum nearer than this to its end is a bound


def decide(settings: TuneSettings, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The values tuned on the proxy, their intervals and the seed noise.

    Raises `UserError` when no trial finished.
    """
    explored = [record for record in records if record["cell"]["explored"]]
    racing = candidates(settings, explored)
    if not racing:
        errors = [record["error"] for record in records if "error" in record]
        why = f"the first raised {errors[0]}" if errors else "all diverged"
        raise UserError(f"none of the {len(records)} trials finished, {why}: start from a smaller lr")
    known = losses_of(records)
    tables = {tuple(sorted(v.items())): known.get(tuple(sorted(v.items())), {}) for v in racing}
    most = max(len(table) for table in tables.values())
    full = {values: table for values, table in tables.items() if len(table) == most}
    best = min(full, key=lambda values: fmean(full[values].values()))
    losses = list(full[best].values())
    return {
        "values": dict(best),
        "loss": fmean(losses),
        "losses": losses,
        "seed_noise": stdev(losses) if len(losses) > 1 else None,
        "paired_noise": _paired(list(full.values())),
        **_intervals(settings, explored, dict(best)),
        "decided": _decided(full, best),
    }


def _paired(tables: list[dict[int, float]]) -> float | None:
    """Standard deviation of one paired difference between candidates over seeds."""
    spreads = []
    for other in tables[1:]:
        differences = [other[seed] - tables[0][seed] for seed in tables[0] if seed in other]
        if len(differences) > 1 and all(map(math.isfinite, differences)):
            spreads.append(stdev(differences))
    return fmean(spreads) if spreads else None


def _decided(full: dict[Any, dict[int, float]], best: Any) -> str:
    """Whether the seeds tell the winner from the others."""
    if len(full) == 1:
        return "the seeds leave one candidate" if len(full[best]) > 1 else "one seed, so nothing tells luck from merit"
    gaps = [[table[s] - full[best][s] for s in table] for values, table in full.items() if values != best]
    open_ = sum(len(gap) < 2 or fmean(gap) <= 2 * stdev(gap) / math.sqrt(len(gap)) for gap in gaps)
    if open_:
        return f"the seeds do not tell {open_ + 1} candidates apart: any of them is as good"
    return "the seeds tell the winner from the other candidates"


def _intervals(settings: TuneSettings, explored: list[dict[str, Any]], best: Values) -> dict[str, Any]:
    vertex, edges = surface(settings, explored), []
    ranges, point = bounds(settings), to_point(best)
    for name, (start, end) in ranges.items():
        near = EDGE * (end - start)
        if not start + near < point[name] < end - near:
            edges.append(name)
    if vertex is None:
        return {"intervals": dict.fromkeys(ranges), "edges": edges, "surface": None}
    low = to_values(dict(zip(ranges, vertex.low, strict=True)))
    high = to_values(dict(zip(ranges, vertex.high, strict=True)))
    # The interval is the fitted minimum's; it is widened to hold the point that won the race.
    intervals = {name: [min(low[name], best[name]), max(high[name], best[name])] for name in ranges}
    return {"intervals": intervals, "edges": edges, "surface": {"noise": vertex.noise, "inside": vertex.predicts}}


def at_target(settings: TuneSettings, values: Values) -> tuple[Values, list[dict[str, Any]]]:
    """The values at the target's steps and batch, and a row for each that a rule moved.

    Loops, layers and width move nothing here: the rule does it inside the model and its parameter groups.
    """
    moved, rows = dict(values), []
    proxy, target, optim = settings.proxy, settings.target, settings.base.optim
    batches, steps = target.batch / proxy.batch, target.steps / proxy.steps
    if batches != 1:
        power = 1.0 if optim.optimizer == "sgd" else 0.5
        moved["lr"] *= batches**power
        source = "arXiv:1706.02677" if power == 1 else BATCH
        rows.append(_moved("lr", batches**power, "batch", f"the rate grows as batch^{power:g}", source))
    tokens = steps * batches
    if tokens != 1:
        factor = tokens**-0.32
        moved["lr"] *= factor
        rows.append(_moved("lr", factor, "steps", "longer training wants a smaller rate: tokens^-0.32", HORIZON))
    if steps != 1 or batches != 1:
        decay = moved.get("weight_decay", optim.weight_decay)
        factor = values["lr"] / (moved["lr"] * steps)
        moved["weight_decay"] = decay * factor
        why = "the weights' memory 1/(lr wd) stays the same share of the run"
        rows.append(_moved("weight_decay", factor, "steps, batch", why, DECAY))
    return {name: float(f"{value:.4g}") for name, value in moved.items()}, rows


def _moved(name: str, factor: float, axis: str, why: str, source: str) -> dict[str, Any]:
    return {"name": name, "factor": factor, "axis": axis, "why": why, "source": source}


def transfer_plan(settings: TuneSettings, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole plan, as `plan.json` keeps it."""
    decision = decide(settings, records)
    values, moved = at_target(settings, decision["values"])
    config = settings.config(settings.target, values)
    return {
        "schema": 1,
        "settings": settings.to_json(),
        "proxy": {**asdict(settings.proxy), **decision},
        "target": {**asdict(settings.target), "values": values, "config": config.model_dump(mode="json")},
        "moved": moved,
        "rows": applied(settings, values, _carried(decision["intervals"], decision["values"], values)),
        "layers": layer_alternatives(settings),
        "sentence": sentence(settings, decision, values),
    }


def _carried(intervals: dict[str, Any], before: Values, after: Values) -> dict[str, Any]:
    """The intervals at the target: moved by the same factor as their value."""
    return {
        name: None if ends is None else [end * after[name] / before[name] if before[name] else end for end in ends]
        for name, ends in intervals.items()
    }


def applied(settings: TuneSettings, values: Values, intervals: dict[str, Any]) -> list[dict[str, Any]]:
    """Every number at the target: the tuned ones with their intervals, then all that the rule sets from them."""
    rows = [
        {
            "name": name,
            "value": value,
            "interval": intervals.get(name),
            "why": f"tuned at {settings.proxy}",
            "source": "this tuning",
        }
        for name, value in values.items()
    ]
    size, model = settings.target, settings.config(settings.target, values).model
    for row in _prescribed(settings, settings.rule, model.strength):
        if row["name"].endswith(".lr"):
            row = {**row, "rate": row["value"] * values["lr"]}
        rows.append({**row, "interval": None, "axes": f"N = {size.loops}, L = {size.layers}, d = {size.width}"})
    return rows


def _prescribed(settings: TuneSettings, rule: str, strength: float) -> list[dict[str, Any]]:
    target, proxy = settings.target, settings.proxy
    return prescription(
        Depth(target.loops, target.layers),
        Width(target.width, proxy.width),
        rule=rule,
        strength=strength,
        base_layers=proxy.layers,
        optimizer=settings.base.optim.optimizer,
    )


def layer_alternatives(settings: TuneSettings) -> list[dict[str, Any]]:
    """Both exponents of the layer axis side by side: b = 1/2 (`looped`) and b = 1 (`looped-complete`)."""
    names = {"residual_scale", "hidden.lr", "hidden.weight_decay", "hidden.adam_eps"}
    rows = []
    for rule, b in (("looped", 0.5), ("looped-complete", 1.0)):
        values = {row["name"]: row["value"] for row in _prescribed(settings, rule, 1.0) if row["name"] in names}
        rows.append({"rule": rule, "b": b, "chosen": rule == settings.rule, "per_strength_1": values})
    return rows


def sentence(settings: TuneSettings, decision: dict[str, Any], values: Values) -> str:
    """What was found, in words."""
    shown = ", ".join(f"{name} {value:g}{_span(decision['intervals'].get(name))}" for name, value in values.items())
    edge = f"; {' and '.join(decision['edges'])} lies near the end of its range" if decision["edges"] else ""
    return (
        f"Tuned at {settings.proxy}: {shown} (95 % intervals), for {settings.target} by the rule {settings.rule}; "
        f"{decision['decided']}{edge}."
    )


def _span(interval: list[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
