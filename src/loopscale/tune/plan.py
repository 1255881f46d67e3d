"""From the tuned values to the target: every value there, which rule moved it, why, from where, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from loopscale.errors import UserError
from loopscale.records import Trial
from loopscale.tune.advice import spoken
from loopscale.tune.search import Values, beaten, candidates, leader, losses_of, paired_noise, surface
from loopscale.tune.settings import TuneSettings, bounds, to_point, to_values
from loopscale.tune.surface import Vertex, needed

BATCH = "arXiv:2205.10287"
HORIZON = "arXiv:2409.19913"
DECAY = "arXiv:2405.13698"
EDGE = 0.1  # of the range: an optimum nearer than this to its end is a bound


def decide(settings: TuneSettings, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the values tuned on the proxy, their intervals and the seed noise.

    Raises `UserError` when no trial finished.
    """
    explored = [trial for trial in trials if trial.cell.explored]
    racing = candidates(settings, explored)
    if not racing:
        errors = [trial.error for trial in trials if trial.error is not None]
        why = (
            f"the first raised {errors[0]}: mend it, and name a new --out" if errors else "all diverged: lower optim.lr"
        )
        raise UserError(f"none of the {len(trials)} trials finished, {why}")
    known = losses_of(trials)
    named = [tuple(sorted(values.items())) for values in racing]
    tables = [known.get(name, {}) for name in named]
    best = leader([table for table in tables if table])
    if not all(map(math.isfinite, best.values())):
        raise UserError("every candidate diverged with one seed or another: lower optim.lr")
    values = dict(named[next(i for i, table in enumerate(tables) if table is best)])
    noise = paired_noise(tables)
    # One that the surface predicted, and the budget left no time to try, is no rival.
    rivals = [(v, t) for v, t in zip(racing, tables, strict=True) if t and t is not best and not beaten(t, best, noise)]
    losses = list(best.values())
    return {
        "values": values,
        "loss": fmean(losses),
        "losses": losses,
        "seed_noise": stdev(losses) if len(losses) > 1 else None,
        "paired_noise": None if noise is None else noise.size,
        "paired_freedom": 0 if noise is None else noise.freedom,
        **_intervals(settings, explored, values),
        "tied": [rival for rival, _ in rivals],
        "decided": _decided(len(losses), len([t for t in tables if t]), [rival for rival, _ in rivals]),
    }


def _decided(seeds: int, raced: int, rivals: list[Values]) -> str:
    """Say whether the seeds tell the winner from the others, in words."""
    if seeds == 1:
        return "one seed, so nothing tells luck from merit"
    if rivals:
        others = "; ".join(" ".join(f"{name} {spoken(value)}" for name, value in rival.items()) for rival in rivals)
        return (
            f"the data do not decide between it, the best mean of {seeds} seeds, and {len(rivals)} other "
            f"candidate{'s' if len(rivals) > 1 else ''} ({others}), at 95 %, paired"
        )
    return f"{seeds} seeds, paired, tell it from the other {raced - 1} candidates (95 %)" if raced > 1 else "no rival"


def _intervals(settings: TuneSettings, explored: Sequence[Trial], best: Values) -> dict[str, Any]:
    vertex, edges = surface(settings, explored), []
    ranges, point = bounds(settings), to_point(best)
    for name, (start, end) in ranges.items():
        near = EDGE * (end - start)
        if not start + near < point[name] < end - near:
            edges.append(name)
    nothing = {"intervals": dict.fromkeys(ranges), "open": {}, "edges": edges, "surface": None}
    if vertex is None:
        finite = sum(trial.loss is not None for trial in explored)
        why = f"{finite} of {len(explored)} explored points finished, a surface needs {needed(len(ranges))}"
        return {**nothing, "interval_note": f"no intervals: {why}"}
    low, high = (
        {name: to_values({**point, name: end})[name] for name, end in zip(ranges, ends, strict=True)}
        for ends in (vertex.low, vertex.high)
    )
    # The interval is the fitted minimum's; it is widened to hold the point that won the race.
    spans = {name: [min(low[name], best[name]), max(high[name], best[name])] for name in ranges}
    ends = dict(zip(ranges, vertex.ends, strict=True))
    intervals = {name: span if vertex.predicts and ends[name] != "both" else None for name, span in spans.items()}
    found = {"noise": vertex.noise, "freedom": vertex.freedom, "inside": vertex.predicts, "crossed": vertex.crossed}
    open_at = {name: end for name, end in ends.items() if end and intervals[name]}
    note = interval_note(vertex, ends, intervals)
    return {"intervals": intervals, "open": open_at, "edges": edges, "surface": found, "interval_note": note}


def interval_note(vertex: Vertex, ends: dict[str, str], intervals: dict[str, Any]) -> str:
    """Return what the intervals are, or why there are none: one that is only the explored range says nothing.

    `ends` names, by value, the sides on which the interval ends where the explored points do (`Vertex.ends`).
    """
    if not vertex.predicts:
        return "no intervals: the surface has no minimum inside what was explored"
    without = [name for name, span in intervals.items() if span is None]
    if len(without) == len(ends):
        return "no intervals: the points do not bound the optimum on either side"
    note = "95 % intervals"
    if without:
        note += f"; none of {' and '.join(without)}: the points do not bound it on either side"
    for name, end in ends.items():
        if end in ("below", "above"):
            note += f"; that of {name} is open {end}: it ends where the explored points do"
    return note if vertex.crossed else f"{note}; too few points to see how the values interact"


def at_lower_end(settings: TuneSettings, values: Values) -> bool:
    """Say whether the best strength lies near the lower end of its range: the layers are then nearly switched off."""
    if "strength" not in values:
        return False
    start, end = bounds(settings)["strength"]
    return to_point(values)["strength"] <= start + EDGE * (end - start)


def at_target(settings: TuneSettings, values: Values) -> tuple[Values, list[dict[str, Any]]]:
    """Return the values at the target's steps and batch, and a row for each that a rule moved.

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


def transfer_plan(settings: TuneSettings, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the whole plan, as `plan.json` keeps it."""
    decision = decide(settings, trials)
    values, moved = at_target(settings, decision["values"])
    config = settings.config(settings.target, values)
    return {
        "settings": settings.to_json(),
        "proxy": {**asdict(settings.proxy), **decision},
        "target": {**asdict(settings.target), "values": values, "config": config.model_dump(mode="json")},
        "moved": moved,
        "rows": applied(settings, values, _carried(decision["intervals"], decision["values"], values), moved),
        "sentence": f"{_begun(settings, decision)} for {settings.target}: {_shown(decision)}.",
        "says": caveats(settings, decision),
    }


def _carried(intervals: dict[str, Any], before: Values, after: Values) -> dict[str, Any]:
    """Return the intervals at the target: moved by the same factor as their value."""
    return {
        name: None if ends is None else [end * after[name] / before[name] if before[name] else end for end in ends]
        for name, ends in intervals.items()
    }


def applied(
    settings: TuneSettings, values: Values, intervals: dict[str, Any], moved: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return every number at the target: the tuned ones with their intervals, then all that the rule sets from them."""
    names = {row["name"] for row in moved}
    rows = [_tuned_row(settings, name, value, intervals.get(name), name in names) for name, value in values.items()]
    size = settings.target
    for row in settings.config(size, values).prescription():
        if row["name"].endswith(".lr"):
            row = {**row, "rate": row["value"] * values["lr"]}
        rows.append({**row, "interval": None, "axes": f"N = {size.loops}, L = {size.layers}, d = {size.width}"})
    return rows


def _tuned_row(
    settings: TuneSettings, name: str, value: float, interval: list[float] | None, moved: bool
) -> dict[str, Any]:
    why = f"tuned at {settings.proxy}" if name in settings.tuned else "moved by a rule alone, see moved"
    if moved and name in settings.tuned:
        why += ", then moved by a rule, see moved"
    if name == "batch":  # a factor in the search; people count sequences
        why += f"; {value:g} of the config's batch, with as many tokens in all"
        value = max(1, round(settings.target.batch * value))
        interval = None if interval is None else [settings.target.batch * end for end in interval]
    return {"name": name, "value": value, "interval": interval, "why": why, "source": "this tuning"}


def _begun(settings: TuneSettings, decision: dict[str, Any]) -> str:
    """Begin the sentence: what lies at the end of its range is no optimum, and comes first."""
    at = settings.proxy.apart(settings.target)
    open_ends = [name for name in decision["edges"] if name in ("lr", "outer_lr")]
    if not open_ends:
        return f"Tuned at {at}"
    return f"Not tuned yet, {' and '.join(open_ends)} near the end of the range: the best so far at {at}"


def _shown(decision: dict[str, Any]) -> str:
    spans = decision["intervals"]
    return ", ".join(f"{name} {spoken(value, spans.get(name))}" for name, value in decision["values"].items())


def caveats(settings: TuneSettings, decision: dict[str, Any]) -> list[str]:
    """Say what stands behind the values, a sentence each: how sure they are, and which lies near the end of its range."""
    edges, note = decision["edges"], decision["interval_note"]
    note = note if note.startswith("no ") else f"in brackets {note}"
    said = [decision["decided"], note, f"the rule {settings.rule} carries them"]
    if edges and at_lower_end(settings, decision["values"]):
        said.append(
            "the best strength lies at its lower end: this network does best with its layers nearly switched off"
        )
    if edges:
        said.append(f"{' and '.join(edges)} {'lie' if len(edges) > 1 else 'lies'} near the end of the range")
    return [f"{text[0].upper()}{text[1:]}." for text in said]
