"""The page of an exponent study, finished or not: valleys of the loss over eps, what carrying costs, the powers of N."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

from loopscale.records import Estimate, ExponentResult, OuterPilot, Valley, read_record
from loopscale.report.figure import Axis, Figure, Guide, Mark, drawn_files, write_drawn
from loopscale.report.figures import rule_name
from loopscale.report.live_page import LivePage
from loopscale.report.page import Section, Table, escape, explained, provenance, render_page, write_page
from loopscale.report.palette import ABOVE, MEASURED, TUNED, Look, interval, looks, number, plain, power, power_ticks

TITLE = "How fast must eps fall with the number of loops?"
_OUTER = (
    "The rate of embedding, readout and final norm, found first at the smallest N with the other values at the middle of "
    "the grid; every other trial keeps it while the hidden rate moves."
)
VALLEY = "measured loss"
BEST = "best eps"
OUTSIDE = "outside what was tried"
LOW, ASIDE = 0.1, 0.25  # below the floor, as a share of the height; beyond the ends of a valley, in octaves

Carried = Mapping[str, Mapping[int, float]]  # rule -> N -> the eps that it carries there


def write_exponent_report(folder: Path) -> Path:
    """Write the page and figures of an exponent study; raises `UserError` for another or a damaged folder."""
    from loopscale.exponent import ExponentStudy

    if not (folder / "result.json").exists():
        return ExponentPage(ExponentStudy.load(folder)).write_looked_at()
    result = read_record(folder / "result.json", ExponentResult)
    write_drawn(folder / "figures", drawn_files(figures(result)))
    return write_page(folder, page(result))


def page(result: ExponentResult) -> str:
    """Return the page of a finished study as HTML."""
    kind = "loopscale exponent study" + (f" of {result.user_code}" if result.user_code else "")
    return render_page(
        TITLE, result.sentence, sections(result), provenance(result.provenance), kind=kind, files="figures"
    )


def sections(result: ExponentResult) -> list[Section]:
    """Return the parts of the page: the valleys, what carrying costs, the powers, the numbers to use."""
    drawn = figures(result)
    parts = [explained(drawn[name]) for name in ("exponent", "carrying-costs") if name in drawn]
    said = "".join(f"<li>{escape(one)}</li>" for one in (*result.says, result.next) if one)
    parts.append(Section("In words", body_html=f"<ul>{said}</ul>"))
    if "eps-over-loops" in drawn:
        parts.append(explained(drawn["eps-over-loops"]))
    if result.outer is not None and result.outer.points:
        parts.append(Section("The outer rate", _OUTER, table=_pilot(result.outer)))
    parts.append(Section("Numbers", table=_numbers(result)))
    return parts


def figures(result: ExponentResult) -> dict[str, Figure]:
    """Return every figure that the study has numbers for, by name, in page order."""
    made = {}
    if any(valley.points for valley in result.valleys):
        valleys = [valley for valley in result.valleys if valley.points]
        made["exponent"] = exponent_figure(valleys, carried_eps(result))
    if any(row.regret for row in result.carried):
        made["carrying-costs"] = _carrying_costs(result)
    if result.a is not None:
        made["eps-over-loops"] = _eps_over_loops(result)
    return made


def carried_eps(result: ExponentResult) -> Carried:
    """Return for each way that keeps the rate the eps that it carries to each N, from the optimum at the smallest."""
    first = result.valleys[0]
    if first.eps is None or first.edge:
        return {}
    return {
        row.spoken: {n: first.eps.value * (n / first.loops) ** -row.a for n in result.loops}
        for row in result.carried
        if row.a is not None and row.g == 0
    }


def _carrying_costs(result: ExponentResult) -> Figure:
    rows = [row for row in result.carried if row.regret is not None]
    names = {row.way: rule_name(row.spoken) for row in rows}
    marks = [
        Mark(row.regret.value, -at, row.way,
             {"carried by": names[row.way], "eps": plain(row.eps), "hidden rate": plain(row.lr),
              "costs (nats)": number(row.regret.value, 4),
              "95 % interval": interval(row.regret.interval, 4) or "none, one seed"}, across=row.regret.interval)
        for at, row in enumerate(rows)
        if row.regret is not None
    ]  # fmt: skip
    last = result.loops[-1]
    return Figure(
        "carrying-costs",
        f"What each way to carry the optimum of N = {result.loops[0]} costs at N = {last}, with intervals.",
        Axis(f"loss at N = {last} above the optimum there (nats)"),
        Axis("", {}, (0.6 - len(rows), 0.6)),
        looks([row.way for row in rows]),
        marks,
        [Guide(x=0.0)],
        labels=names,
        height=50 + 34 * len(rows),
    )


def _eps_over_loops(result: ExponentResult) -> Figure:
    marks = [_place(valley.loops, valley.eps) for valley in result.valleys if valley.eps is not None]
    if result.target is not None:
        marks.append(_place(result.target.loops, result.target.eps, hollow=True))
    first, farthest = result.valleys[0], result.target.loops if result.target else result.loops[-1]
    ways = {row.spoken: row.a for row in result.carried if row.a is not None and row.g == 0}
    for way, a in ways.items():
        assert first.eps is not None
        for loops in (first.loops, farthest):
            marks.append(
                Mark(math.log2(loops), math.log2(first.eps.value) - a * math.log2(loops / first.loops), way,
                     line="dotted", shape="none")
            )  # fmt: skip
    heights = [mark.y for mark in marks if mark.y is not None]
    return Figure(
        "eps-over-loops",
        "The best eps over the number of loops, with the slopes of the rules.",
        Axis("loops N", {math.log2(n): str(n) for n in sorted({*result.loops, farthest})}),
        Axis("eps", power_ticks(min(heights) - 0.5, max(heights) + 0.5, 8)),
        {BEST: Look(TUNED.ink, "circle"), **looks(list(ways))},
        marks,
        labels={way: rule_name(way) for way in ways},
        height=320,
    )


def _place(loops: int, eps: Estimate, hollow: bool = False) -> Mark:
    ends = eps.interval
    up = (math.log2(ends[0]), math.log2(ends[1])) if ends else None
    said = {"N": str(loops), "best eps": plain(eps.value)}
    said |= {"95 % interval": _span(eps)} if ends else {}
    said |= {"what": "extrapolated to the target" if hollow else "fitted"}
    return Mark(math.log2(loops), math.log2(eps.value), BEST, said, line="solid", up=up, hollow=hollow)


def _numbers(result: ExponentResult) -> Table:
    rows = [
        ("a (best eps falls as N^-a)", *_cells(result.a)),
        ("g (best hidden rate falls as N^-g)", *_cells(result.g)),
    ]
    for valley in result.valleys:
        at = f"N = {valley.loops}"
        rows += [
            (f"best eps, {at}", *_cells(valley.eps)),
            (f"best hidden rate, {at}", *_cells(valley.lr)),
            (f"loss there (nats), {at}", *_cells(valley.loss)),
        ]
    if result.target is not None:
        at = f"extrapolated to N = {result.target.loops}"
        rows += [(f"eps, {at}", *_cells(result.target.eps)), (f"hidden rate, {at}", *_cells(result.target.lr))]
    if result.outer is not None:
        found = Estimate(value=result.outer.rate, interval=result.outer.interval)
        rows.append(("rate of embedding and readout", *_cells(found)))
    rows += [(f"loss minus loss: {name}", *_cells(one)) for name, one in result.differences.items()]
    return Table(("what", "value", "95 % interval"), rows)


def _pilot(outer: OuterPilot) -> Table:
    rows = [
        (power(point.lr), number(point.loss, 4), ", ".join(number(loss, 4) for loss in point.losses))
        for point in outer.points
    ]
    return Table(("outer rate", "loss (nats), mean", "by seed"), rows)


def _cells(measured: Estimate | None) -> tuple[str, str]:
    return ("n/a", "") if measured is None else (plain(measured.value), _span(measured))


def _span(measured: Estimate) -> str:
    ends = measured.interval
    return "" if ends is None else f"[{plain(ends[0])}, {plain(ends[1])}]"


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
        seeds = "one seed" if point.seeds == 1 else f"{point.seeds} seeds"
        said |= {"95 % interval": interval(ends, 4) or f"none, {seeds}"}
        height = min(point.loss - lowest, top)
        up = (max(ends[0] - lowest, -LOW * top), min(ends[1] - lowest, top)) if ends else None
        above = point.loss - lowest > top
        line, shape = ("", ABOVE) if above else ("solid", "")
        marks.append(
            Mark(math.log2(point.eps), height, VALLEY, said, _panel(valley), line, shape, None if above else up)
        )
    if valley.eps is not None and not valley.edge:
        ends = valley.eps.interval
        said = {"N": str(valley.loops), "what": BEST, "eps": plain(valley.eps.value), "loss": number(lowest, 4)}
        said |= {"95 % interval": _span(valley.eps)} if ends else {}
        low, high = math.log2(valley.points[0].eps) - ASIDE, math.log2(valley.points[-1].eps) + ASIDE
        across = (max(math.log2(ends[0]), low), min(math.log2(ends[1]), high)) if ends else None
        at, below = math.log2(valley.eps.value), -0.05 * top
        marks.append(Mark(at, below, BEST, said, _panel(valley), "", "triangle-up", None, across))
    return marks


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


class ExponentPage(LivePage):
    """The page of a running exponent study."""

    TITLE, NOUN, COMMAND = TITLE, "exponent study", "exponent"

    def so_far(self) -> tuple[str, list[Section]]:
        """Return how many trials ended, and their valleys."""
        from loopscale.exponent import summarise

        done, left = len(self.study.trials), self.study.left()
        drawn = figures(summarise(self.study, {})) if done else {}
        parts = [explained(drawn["exponent"])] if "exponent" in drawn else []
        return f"{done} trials have ended, {left} more are known to be needed.", parts
