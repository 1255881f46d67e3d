"""The figure of the exponent: the valley of the loss over eps at each N, and where each rule would carry eps to."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopscale.report.figure import Axis, Figure, Guide, Mark, Pair
from loopscale.report.figures import rule_name
from loopscale.report.palette import MEASURED, TUNED, Look, interval, looks, number, plain, power_ticks

VALLEY = "measured loss"
BEST = "best eps"
OUTSIDE = "outside what was tried"

READING = (
    "One panel per number of loops N: the loss over the branch scale eps, as what it lies above the lowest point of that "
    "panel; the bars are 95 % intervals. The arrow below the floor is the fitted best eps, with its 95 % interval. "
    "Each large mark is the eps that a rule carries there from the best one at the smallest N. A rule holds when its mark "
    "lies at the bottom of every valley; the height of the mark is the loss that the rule costs."
)


@dataclass(frozen=True)
class Valley:
    """Mean losses over eps at one N, ascending in eps, with the fitted vertex where there is one."""

    loops: int
    eps: Sequence[float]
    losses: Sequence[float]
    intervals: Sequence[Pair | None] = ()
    best: float | None = None
    best_interval: Pair | None = None
    best_loss: float | None = None

    @property
    def floor(self) -> float:
        """The lowest loss: the vertex's, or the lowest that was measured."""
        return min(self.losses) if self.best_loss is None else self.best_loss

    def at(self, eps: float) -> float | None:
        """Interpolate the loss in log eps; None outside what was measured."""
        if not self.eps[0] <= eps <= self.eps[-1]:
            return None
        right = min(bisect_right(self.eps, eps), len(self.eps) - 1)
        low, high = math.log2(self.eps[right - 1]), math.log2(self.eps[right])
        share = (math.log2(eps) - low) / (high - low)
        return self.losses[right - 1] * (1 - share) + self.losses[right] * share


@dataclass(frozen=True)
class ExponentInfo:
    """What the figure shows: a valley per N, and for each rule the eps that it carries to each N."""

    valleys: Sequence[Valley]
    carried: Mapping[str, Mapping[int, float]]


def exponent_figure(info: ExponentInfo) -> Figure:
    """Draw a panel per N: the valley, its vertex, and the place to which each rule carries eps."""
    top, styles = _ceiling(info), looks(list(info.carried))
    marks: list[Mark] = []
    for valley in info.valleys:
        marks += _valley(valley, top)
        there = {rule: eps[valley.loops] for rule, eps in info.carried.items() if valley.loops in eps}
        if len(set(there.values())) > 1 or len(there) == 1:  # where all are one, nothing has been carried yet
            marks += [_carried(valley, rule, eps, styles[rule].shape, top) for rule, eps in there.items()]
    low, high = (math.log2(end([eps for v in info.valleys for eps in v.eps])) for end in (min, max))
    return Figure(
        "exponent",
        "Loss over eps at each number of loops, with the fitted best eps and the eps that each rule carries there.",
        Axis("eps", power_ticks(low, high, 6), (low - 0.4, high + 0.4)),
        Axis("loss above the valley's floor (nats)", None, (-0.1 * top, 1.08 * top)),
        {VALLEY: MEASURED, BEST: Look(TUNED.ink, "triangle-up"), **styles},
        marks,
        [Guide(_panel(valley), y=0.0) for valley in info.valleys],
        [_panel(valley) for valley in info.valleys],
        labels={rule: rule_name(rule) for rule in info.carried},
    )


def _panel(valley: Valley) -> str:
    return f"N = {valley.loops}"


def _ceiling(info: ExponentInfo) -> float:
    """Where the axis ends: all that the rules cost is seen, and a loss far above it does not flatten the valleys."""
    costs = [
        loss - valley.floor
        for valley in info.valleys
        for eps in (carried.get(valley.loops) for carried in info.carried.values())
        if eps is not None and (loss := valley.at(eps)) is not None
    ]
    highest = max(max(valley.losses) - valley.floor for valley in info.valleys)
    return max(min(highest, max(0.05, 1.3 * max(costs, default=0.0))), 1e-3)


def _valley(valley: Valley, top: float) -> list[Mark]:
    marks, floor = [], valley.floor
    for index, (eps, loss) in enumerate(zip(valley.eps, valley.losses, strict=True)):
        ends = valley.intervals[index] if valley.intervals else None
        said = {"N": str(valley.loops), "what": VALLEY, "eps": plain(eps), "loss": number(loss, 4)}
        said |= {"95 % interval": interval(ends, 4)} if ends else {}
        height = min(loss - floor, top)
        up = (min(ends[0] - floor, top), min(ends[1] - floor, top)) if ends else None
        above = loss - floor > top
        line, shape = ("", "triangle-up") if above else ("solid", "")
        marks.append(Mark(math.log2(eps), height, VALLEY, said, _panel(valley), line, shape, None if above else up))
    if valley.best is not None:
        ends = valley.best_interval
        said = {"N": str(valley.loops), "what": BEST, "eps": plain(valley.best), "loss": number(floor, 4)}
        said |= {"95 % interval": f"[{plain(ends[0])}, {plain(ends[1])}]"} if ends else {}
        across = (math.log2(ends[0]), math.log2(ends[1])) if ends else None
        below = -0.05 * top
        marks.append(Mark(math.log2(valley.best), below, BEST, said, _panel(valley), "", "triangle-up", None, across))
    return marks


def _carried(valley: Valley, rule: str, eps: float, shape: str, top: float) -> Mark:
    """A rule's place on the valley; at the edge of the panel when it carries eps outside what was tried."""
    loss = valley.at(eps)
    cost = "" if loss is None else number(loss - valley.floor, 4)
    said = {
        "N": str(valley.loops),
        "what": f"carried by {rule_name(rule)}",
        "eps": plain(eps),
        "costs": cost or OUTSIDE,
    }
    inside = min(max(eps, valley.eps[0]), valley.eps[-1])
    aside = 0.0 if loss is not None else math.copysign(0.25, eps - inside)
    edge = valley.at(inside)
    height = (edge if edge is not None else valley.floor) - valley.floor
    return Mark(math.log2(inside) + aside, min(height, top), rule, said, _panel(valley), shape=shape)
