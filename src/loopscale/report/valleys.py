"""The figure of the exponent: the valley of the loss over eps at each N, and where each rule would carry eps to."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from loopscale.records import Valley, ValleyPoint
from loopscale.report.figure import Axis, Figure, Guide, Mark
from loopscale.report.figures import rule_name
from loopscale.report.palette import MEASURED, TUNED, Look, interval, looks, number, plain, power_ticks

VALLEY = "measured loss"
BEST = "best eps"
OUTSIDE = "outside what was tried"
LOW, ASIDE = 0.1, 0.25  # below the floor, as a share of the height; beyond the ends of a valley, in octaves

Carried = Mapping[str, Mapping[int, float]]  # rule -> N -> the eps that it carries there


def exponent_figure(valleys: Sequence[Valley], carried: Carried) -> Figure:
    """Draw a panel per N: the valley, its vertex, and the place to which each rule carries eps."""
    top, styles = _ceiling(valleys, carried), looks(list(carried))
    marks: list[Mark] = []
    for valley in valleys:
        marks += _valley(valley, top)
        there = {rule: eps[valley.loops] for rule, eps in carried.items() if valley.loops in eps}
        if len(set(there.values())) > 1 or len(there) == 1:  # where all are one, nothing has been carried yet
            marks += [_carried(valley, rule, eps, styles[rule].shape, top) for rule, eps in there.items()]
    low, high = (math.log2(end([eps for v in valleys for eps in _tried(v)])) for end in (min, max))
    return Figure(
        "exponent",
        "Loss over eps at each number of loops, with the fitted best eps and the eps that each rule carries there.",
        Axis("eps", power_ticks(low, high, 6), (low - 0.4, high + 0.4)),
        Axis("loss above the valley's floor (nats)", None, (-LOW * top, 1.08 * top)),
        {VALLEY: MEASURED, BEST: Look(TUNED.ink, "triangle-up"), **styles},
        marks,
        [Guide(_panel(valley), y=0.0) for valley in valleys],
        [_panel(valley) for valley in valleys],
        labels={rule: rule_name(rule) for rule in carried},
    )


def _panel(valley: Valley) -> str:
    return f"N = {valley.loops}"


def floor(valley: Valley) -> float:
    """Return the lowest loss of a valley: the fitted vertex's, or the lowest that was measured."""
    fitted = None if valley.loss is None or valley.edge else valley.loss.value
    return min([point.loss for point in valley.points] + ([] if fitted is None else [fitted]))


def cost_at(valley: Valley, eps: float) -> float | None:
    """Return what the loss at `eps` lies above the floor, interpolated in log eps; None outside what was measured."""
    tried = _tried(valley)
    if not tried[0] <= eps <= tried[-1] or len(tried) < 2:
        return None
    right = min(bisect_right(tried, eps), len(tried) - 1)
    low, high = math.log2(tried[right - 1]), math.log2(tried[right])
    share = (math.log2(eps) - low) / (high - low)
    ends = valley.points[right - 1].loss, valley.points[right].loss
    return ends[0] * (1 - share) + ends[1] * share - floor(valley)


def _tried(valley: Valley) -> list[float]:
    return [point.eps for point in valley.points]


def _ceiling(valleys: Sequence[Valley], rules: Carried) -> float:
    """Return where the axis ends: all that the rules cost is seen, and a loss far above it does not flatten the valleys."""
    costs = [
        cost
        for valley in valleys
        for eps in (carried.get(valley.loops) for carried in rules.values())
        if eps is not None and (cost := cost_at(valley, eps)) is not None
    ]
    highest = max(point.loss - floor(valley) for valley in valleys for point in valley.points)
    return max(min(highest, max(0.05, 1.3 * max(costs, default=0.0))), 1e-3)


def _valley(valley: Valley, top: float) -> list[Mark]:
    marks, lowest = [], floor(valley)
    for point in valley.points:
        ends = point.interval
        said = {"N": str(valley.loops), "what": VALLEY, "eps": plain(point.eps), "loss": number(point.loss, 4)}
        said |= {"95 % interval": interval(ends, 4) if ends else f"none, {_seeds(point)}"}
        height = min(point.loss - lowest, top)
        up = (max(ends[0] - lowest, -LOW * top), min(ends[1] - lowest, top)) if ends else None
        above = point.loss - lowest > top
        line, shape = ("", "triangle-up") if above else ("solid", "")
        marks.append(
            Mark(math.log2(point.eps), height, VALLEY, said, _panel(valley), line, shape, None if above else up)
        )
    if valley.eps is not None and not valley.edge:
        ends = valley.eps.interval
        said = {"N": str(valley.loops), "what": BEST, "eps": plain(valley.eps.value), "loss": number(lowest, 4)}
        said |= {"95 % interval": f"[{plain(ends[0])}, {plain(ends[1])}]"} if ends else {}
        low, high = math.log2(valley.points[0].eps) - ASIDE, math.log2(valley.points[-1].eps) + ASIDE
        across = (max(math.log2(ends[0]), low), min(math.log2(ends[1]), high)) if ends else None
        at, below = math.log2(valley.eps.value), -0.05 * top
        marks.append(Mark(at, below, BEST, said, _panel(valley), "", "triangle-up", None, across))
    return marks


def _seeds(point: ValleyPoint) -> str:
    return "one seed" if point.seeds == 1 else f"{point.seeds} seeds"


def _carried(valley: Valley, rule: str, eps: float, shape: str, top: float) -> Mark:
    """Return a rule's place on the valley; at the edge of the panel when it carries eps outside what was tried."""
    cost = cost_at(valley, eps)
    said = {
        "N": str(valley.loops),
        "what": f"carried by {rule_name(rule)}",
        "eps": plain(eps),
        "costs": OUTSIDE if cost is None else number(cost, 4),
    }
    tried = _tried(valley)
    inside = min(max(eps, tried[0]), tried[-1])
    aside = 0.0 if cost is not None else math.copysign(ASIDE, eps - inside)
    height = cost_at(valley, inside) or 0.0
    return Mark(
        math.log2(inside) + aside,
        min(height, top),
        rule,
        said,
        _panel(valley),
        shape="" if cost is None else shape,
        hollow=cost is None,
    )
