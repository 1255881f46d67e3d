"""The figures of a study: what each shows, as marks on axes. The numbers come from `info`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loopscale.report.figure import Axis, Figure, Guide, Mark
from loopscale.report.info import Curve, StudyInfo, Window, curves, drift_line, log_bounds
from loopscale.report.palette import (
    ABOVE,
    REFERENCE,
    VERDICTS,
    Look,
    interval,
    log_ticks,
    looks,
    loop_looks,
    nice_ticks,
    number,
    power,
    power_ticks,
    whole_ticks,
)


def study_figures(study: StudyInfo) -> dict[str, Figure]:
    """Return every figure that the study has numbers for, by name, in page order."""
    compared = any(pair.slope is not None or pair.loss is not None for pair in study.result.paired)
    made = [paired_differences(study)] if compared else []
    made.append(loss_over_rate(study))
    if any(rule.optima for rule in study.rules.values()):
        made += [optimum_over_loops(study), loss_over_loops(study)]
    if study.streams:
        made.append(stream_over_visits(study))
    if study.any_diverged:
        made.append(diverged_cells(study))
    if study.strength_curves:
        made.append(loss_over_strength(study))
    return {figure.name: figure for figure in made}


def rule_name(name: str) -> str:
    """Name a rule for readers: "none" alone would read as if nothing were meant.

    >>> rule_name("none"), rule_name("looped")
    ('without a scale (rule none)', 'looped')
    """
    return "without a scale (rule none)" if name == "none" else name


def paired_differences(study: StudyInfo) -> Figure:
    """Draw the first rule minus each other one, paired over seeds: the slope, and the loss at the largest N."""
    pairs = study.result.paired
    slope, loss = "slope (octaves per doubling of N)", f"loss at N = {max(study.loops)} (nats)"
    names = {pair.rules[1]: f"{rule_name(pair.rules[0])} minus {rule_name(pair.rules[1])}" for pair in pairs}
    marks = [
        Mark(value, -row, pair.rules[1],
             {"rules": names[pair.rules[1]], "difference of": panel, "value": number(value, 4),
              "95 % interval": interval(ends, 4) or "none, one seed"}, panel, across=ends)
        for row, pair in enumerate(pairs)
        for panel, value, ends in ((slope, pair.slope, pair.slope_interval), (loss, pair.loss, pair.loss_interval))
        if value is not None
    ]  # fmt: skip
    return Figure(
        "paired-differences",
        "Differences of slope and loss between the first rule and each other one, paired over seeds, with intervals.",
        Axis("difference"),
        Axis("", {}, (0.6 - len(pairs), 0.6)),
        {name: look for name, look in looks(list(study.rules)).items() if name in names},
        marks,
        [Guide(panel, x=0.0) for panel in (slope, loss)],
        [slope, loss],
        names,
        height=50 + 34 * len(pairs),
        apart=True,
    )


def loss_over_rate(study: StudyInfo) -> Figure:
    """Draw loss over learning rate: a panel per rule, a colour per number of loops, the fitted optimum marked."""
    view = study.window
    row = 0.06 * (view.loss_high - view.loss_low) if study.any_diverged else 0.0
    marks: list[Mark] = []
    guides: list[Guide] = []
    for name, rule in study.rules.items():
        panel = rule_name(name)
        for curve in curves(rule):
            at = study.loops.index(curve.loops) if curve.loops in study.loops else 0
            height = view.loss_high + row * (0.9 + at)
            marks += [*_curve(curve, panel, view), *_lost(curve, panel, height), *_optimum(curve, panel)]
        first = next((curve.optimum for curve in curves(rule) if curve.optimum), None)
        guides += [Guide(panel, x=math.log2(first.lr))] if first else []
        guides += [Guide(panel, y=view.loss_high, note="diverged above this line")] if row else []
    ticks = {tick: f"{tick:g}" for tick in nice_ticks(view.loss_low, view.loss_high)}
    return Figure(
        "loss-over-rate",
        "Loss over learning rate, one panel per rule, one line per number of loops, fitted optima marked.",
        _rate_axis(view),
        Axis("validation loss (nats)", ticks, (view.loss_low, view.loss_high + row * (len(study.loops) + 1.2))),
        loop_looks(study.loops),
        marks,
        guides,
        [rule_name(name) for name in study.rules],
        height=300,
    )


def _rate_axis(view: Window) -> Axis:
    return Axis("learning rate", power_ticks(view.rate_low, view.rate_high), (view.rate_low, view.rate_high))


def _told(panel: str, loops: int, lr: float, what: str) -> dict[str, str]:
    return {"rule": panel, "N": str(loops), "what": what, "rate": power(lr), "decimal": f"{lr:.4g}"}


def _curve(curve: Curve, panel: str, view: Window) -> list[Mark]:
    """Draw mean loss with the range over seeds; a loss above the window is drawn at its edge as a chevron."""
    marks = []
    for point in curve.points:
        if point.loss is None:
            continue
        ends, top = point.ends, view.loss_high
        said = _told(panel, curve.loops, point.lr, "tried") | {"loss": number(point.loss, 4)}
        if ends and len(point.losses) > 1:
            said |= {f"{len(point.losses)} seeds": interval(ends, 4)}
        up = (min(ends[0], top), min(ends[1], top)) if ends and ends[0] < ends[1] else None
        above = point.loss > top
        marks.append(
            Mark(math.log2(point.lr), min(point.loss, top), f"N = {curve.loops}", said, panel, "solid",
                 ABOVE if above else "", up)
        )  # fmt: skip
    return marks


def _lost(curve: Curve, panel: str, height: float) -> list[Mark]:
    """Draw a cross for each rate at which a seed diverged."""
    return [
        Mark(math.log2(point.lr), height, f"N = {curve.loops}",
             _told(panel, curve.loops, point.lr, "diverged") | {"seeds lost": "{} of {}".format(*point.lost)},
             panel, shape="diverged")
        for point in curve.points
        if point.lost[0]
    ]  # fmt: skip


def _optimum(curve: Curve, panel: str) -> list[Mark]:
    best = curve.optimum
    if best is None:
        return []
    said = _told(panel, curve.loops, best.lr, "fitted optimum") | _optimum_said(curve)
    return [Mark(math.log2(best.lr), best.loss, f"N = {curve.loops}", said, panel, "", "diamond", None,
                 log_bounds(best.lr_interval))]  # fmt: skip


def _optimum_said(curve: Curve) -> dict[str, str]:
    """Return the numbers of a fitted optimum; why it has no interval, where it has none."""
    best = curve.optimum
    assert best is not None
    why = "none, at the edge" if best.edge else "none, one seed" if best.n_seeds == 1 else "none, no noise known"
    ends = best.lr_interval if log_bounds(best.lr_interval) else None
    return {
        "rate, 95 % interval": f"[{power(ends[0])}, {power(ends[1])}]" if ends else why,
        "loss": number(best.loss, 4),
        "loss, 95 % interval": interval(best.loss_interval, 4) or why,
        "at the edge of the rates": "yes" if best.edge else "",
    }


def optimum_over_loops(study: StudyInfo) -> Figure:
    """Draw the fitted optimal rate over loops, log-log, with the fitted slope of each rule."""
    marks: list[Mark] = []
    heights: list[float] = []
    labels = {}
    for name, rule in study.rules.items():
        marks += [Mark(x, y, name, line="dotted", shape="none") for x, y in drift_line(rule)]
        found = _rule_marks(study, name)
        for mark, curve in found:
            assert curve.optimum is not None
            ends = log_bounds(curve.optimum.lr_interval)
            marks.append(mark._replace(y=math.log2(curve.optimum.lr), up=ends))
            heights += [math.log2(curve.optimum.lr), *(ends or ())]
        labels[name] = f"{rule_name(name)}: slope {number(rule.slope)} {interval(rule.slope_interval)}".rstrip()
    low, high = min(heights) - 0.4, max(heights) + 0.4
    return Figure(
        "optimum-over-loops",
        "Fitted optimal learning rate over loops for each rule, with intervals and the fitted slope.",
        _loops_axis(study),
        Axis("optimal learning rate", power_ticks(low, high), (low, high)),
        looks(list(study.rules)),
        marks,
        labels=labels,
    )


def _loops_axis(study: StudyInfo) -> Axis:
    low, high = math.log2(min(study.loops)), math.log2(max(study.loops))
    return Axis("loops N", {math.log2(n): str(n) for n in study.loops}, (low - 0.35, high + 0.35))


def _rule_marks(study: StudyInfo, name: str) -> list[tuple[Mark, Curve]]:
    """Return the optima of a rule over loops, moved sideways a little so that equal points do not hide each other."""
    names = list(study.rules)
    aside = 0.05 * (names.index(name) - (len(names) - 1) / 2)
    return [
        (Mark(math.log2(curve.loops) + aside, None, name,
              _told(rule_name(name), curve.loops, curve.optimum.lr, "fitted optimum") | _optimum_said(curve),
              hollow=curve.optimum.edge), curve)
        for curve in curves(study.rules[name])
        if curve.optimum
    ]  # fmt: skip


def loss_over_loops(study: StudyInfo) -> Figure:
    """Draw the loss at each rule's own optimum, over loops."""
    marks = [
        mark._replace(y=curve.optimum.loss, up=curve.optimum.loss_interval, line="solid")
        for name in study.rules
        for mark, curve in _rule_marks(study, name)
        if curve.optimum
    ]
    return Figure(
        "loss-over-loops",
        "Loss at each rule's own best learning rate over loops, with intervals.",
        _loops_axis(study),
        Axis("loss at the optimum (nats)"),
        looks(list(study.rules)),
        marks,
        labels={name: rule_name(name) for name in study.rules},
    )


def stream_over_visits(study: StudyInfo) -> Figure:
    """Draw RMS of the residual stream after each visit at the largest loops: before and after training."""
    found = study.streams
    marks = [
        Mark(visit, rms, stream.rule,
             {"rule": rule_name(stream.rule), "N": str(stream.loops), "rate": power(stream.lr), "when": when,
              "visit": str(visit), "RMS": number(rms)}, when, "solid")
        for stream in found
        for when, values in (("at initialisation", stream.initial), ("after training", stream.final))
        for visit, rms in enumerate(values)
    ]  # fmt: skip
    return Figure(
        "stream-over-visits",
        "RMS of the residual stream after each visit at the largest number of loops, before and after training.",
        visit_axis(marks),
        log_axis("RMS of the stream", [mark.y for mark in marks if mark.y]),
        {name: look for name, look in looks(list(study.rules)).items() if any(s.rule == name for s in found)},
        marks,
        panels=["at initialisation", "after training"],
        labels={stream.rule: f"{rule_name(stream.rule)} at {power(stream.lr)}" for stream in found},
    )


def diverged_cells(study: StudyInfo) -> Figure:
    """Draw trainability: which cells of loops and rate diverged, and for how many of their seeds."""
    fates = {"all seeds finished": Look(REFERENCE.ink, "circle"), "a seed diverged": Look(VERDICTS["fail"], "square"),
             "every seed diverged": Look(VERDICTS["fail"], "cross")}  # fmt: skip
    marks = []
    for name, rule in study.rules.items():
        for loops, point in ((curve.loops, point) for curve in curves(rule) for point in curve.points):
            lost, seeds = point.lost
            fate = list(fates)[(lost > 0) + (lost == seeds)]
            said = _told(rule_name(name), loops, point.lr, fate) | {"lost": f"{lost} of {seeds}"}
            at = study.loops.index(loops) if loops in study.loops else -1
            marks.append(
                Mark(math.log2(point.lr), at, fate, said, rule_name(name), shape="diverged" * fate.startswith("e"))
            )
    return Figure(
        "diverged-cells",
        "Which combinations of loops and learning rate diverged, one panel per rule.",
        _rate_axis(study.window),
        Axis("loops N", {float(i): str(n) for i, n in enumerate(study.loops)}, (-0.6, len(study.loops) - 0.4)),
        fates,
        marks,
        panels=[rule_name(name) for name in study.rules],
        height=200,
    )


def loss_over_strength(study: StudyInfo) -> Figure:
    """Draw, where several strengths were swept, the best loss over rates at each strength."""
    found = study.strength_curves
    marks = [
        Mark(math.log2(strength) if strength > 0 else strength, loss, f"N = {curve.loops}",
             {"rule": rule_name(curve.rule), "N": str(curve.loops), "strength": f"{strength:g}",
              "best loss": number(loss, 4)}, rule_name(curve.rule), "solid")
        for curve in found
        for strength, loss in zip(curve.strengths, curve.losses, strict=True)
    ]  # fmt: skip
    swept = sorted({strength for curve in found for strength in curve.strengths})
    return Figure(
        "loss-over-strength",
        "Best loss over the strength lambda, one panel per rule, one line per number of loops.",
        Axis("strength λ", {math.log2(s) if s > 0 else s: f"{s:g}" for s in swept}),
        Axis("best loss (nats)"),
        loop_looks(study.loops),
        marks,
        panels=list(dict.fromkeys(rule_name(curve.rule) for curve in found)),
    )


def visit_axis(marks: Sequence[Mark]) -> Axis:
    """Return the axis of visits, with ticks at whole numbers: there is no half visit."""
    last = max(mark.x for mark in marks)
    return Axis("visit (0 is the entry)", {float(at): str(at) for at in whole_ticks(0, last, 9)}, (0, last))


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """Return a log axis with ticks at 1, 2, 5; a linear one from zero where the `values` span less than a factor of 4."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if low <= 0 or high / low < 4:
        return Axis(title, None, (min(0.0, 1.08 * low), 1.08 * high))
    pad = (high / low) ** 0.06
    return Axis(title, {tick: f"{tick:g}" for tick in log_ticks(low, high)}, (low / pad, high * pad), log=True)
