"""The figures of a study, drawn for plotly.js."""

from __future__ import annotations

import math

from loopscale.report.chart import Axis, Chart, LegendEntry, Trace, log_axis, on_panel, plot_text, power_ticks, whiskers
from loopscale.report.info import StudyInfo, any_diverged, curves, drift_line, log_bounds, streams
from loopscale.report.info import strength_curves as strength_info
from loopscale.report.palette import GREY, Look, interval, looks, number, power, short, whole_ticks
from loopscale.report.rate_chart import diverged_cells, loop_inks, loss_over_rate, optimum_text


def charts(study: StudyInfo) -> dict[str, Chart]:
    """Every figure that the study has numbers for, by name, in page order."""
    drawn = [loss_over_rate(study), optimum_over_loops(study), loss_over_loops(study)]
    if streams(study):
        drawn.append(stream_over_visits(study))
    if any_diverged(study):
        drawn.append(diverged_cells(study))
    if strength_info(study):
        drawn.append(loss_over_strength(study))
    return {chart.name: chart for chart in drawn}


def optimum_over_loops(study: StudyInfo) -> Chart:
    """The fitted optimal rate over loops, log-log, with the fitted slope of each rule."""
    styles, traces, legend, heights = looks(list(study.rules)), [], [], []
    for position, (name, rule) in enumerate(study.rules.items()):
        look, line = styles[name], drift_line(rule)
        if line:
            traces.append(_line([p[0] for p in line], [p[1] for p in line], look, name))
        bounds = [log_bounds(c.optimum.lr_interval) for c in curves(rule) if c.optimum]
        rates = [math.log2(c.optimum.lr) for c in curves(rule) if c.optimum]
        heights += [*rates, *(end for pair in bounds if pair for end in pair)]
        traces.append(_rule_points(study, position, look, rates, bounds))
        slope = f"{short(name)}: slope {number(rule.slope)} {interval(rule.slope_interval)}"
        legend.append(LegendEntry(name, slope, look.ink))
    low, high = (min(heights) - 0.5, max(heights) + 0.5) if heights else (-8.0, -4.0)
    return Chart(
        "optimum-over-loops",
        "Fitted optimal learning rate over loops for each rule, with intervals and the fitted slope.",
        _loops_axis(study),
        Axis("optimal learning rate", power_ticks(whole_ticks(low, high)), (low, high)),
        traces,
        legend=legend,
    )


def _loops_axis(study: StudyInfo) -> Axis:
    low, high = math.log2(min(study.loops)), math.log2(max(study.loops))
    ticks = {math.log2(loops): str(loops) for loops in study.loops}
    return Axis("loops N", ticks, (low - 0.35, high + 0.35))


def _line(xs: list[float], ys: list[float], look: Look, group: str) -> Trace:
    style = {"color": look.ink.light, "width": 2, "dash": "dot"}
    made: Trace = {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": style}
    return made | {"hoverinfo": "skip", "legendgroup": group, "opacity": 0.8}


def _rule_points(
    study: StudyInfo, position: int, look: Look, values: list[float], bounds: list[tuple[float, float] | None]
) -> Trace:
    """The optima of the rule at `position`, moved sideways a little so that equal points do not hide each other."""
    name = list(study.rules)[position]
    found = [curve for curve in curves(study.rules[name]) if curve.optimum]
    aside = 0.05 * (position - (len(study.rules) - 1) / 2)
    hollow = ["-open" if curve.optimum and curve.optimum.edge else "" for curve in found]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [math.log2(curve.loops) + aside for curve in found],
        "y": values,
        "error_y": whiskers(values, bounds) | {"color": look.ink.light},
        "marker": {
            "symbol": [look.plotly_symbol + end for end in hollow],
            "size": 10,
            "color": look.ink.light,
            "line": {"color": look.ink.light, "width": 1.5},
        },
        "legendgroup": name,
        "hoverinfo": "text",
        "hovertext": [optimum_text(f"{plot_text(short(name))}, N = {c.loops}", c) for c in found],
    }


def loss_over_loops(study: StudyInfo) -> Chart:
    """The loss at each rule's own optimum, over loops."""
    styles, traces, legend = looks(list(study.rules)), [], []
    for position, (name, rule) in enumerate(study.rules.items()):
        found = [(c.loops, c.optimum) for c in curves(rule) if c.optimum]
        losses = [optimum.loss for _, optimum in found]
        points = _rule_points(study, position, styles[name], losses, [optimum.loss_interval for _, optimum in found])
        joined = _line(points["x"], losses, styles[name], name)
        traces += [joined | {"line": joined["line"] | {"dash": "solid"}}, points]
        legend.append(LegendEntry(name, short(name), styles[name].ink))
    return Chart(
        "loss-over-loops",
        "Loss at each rule's own best learning rate over loops, with intervals.",
        _loops_axis(study),
        Axis("loss at the optimum (nats)"),
        traces,
        legend=legend,
    )


def stream_over_visits(study: StudyInfo) -> Chart:
    """RMS of the residual stream after each visit at the largest loops: before and after training."""
    styles, traces = looks(list(study.rules)), []
    found = streams(study)
    for stream in found:
        look = styles[stream.rule]
        for panel, (when, rms) in enumerate((("initial", stream.initial), ("final", stream.final)), start=1):
            marker = {"size": 6, "symbol": look.plotly_symbol, "color": look.ink.light}
            made: Trace = {"type": "scatter", "mode": "lines+markers", "x": list(range(len(rms))), "y": list(rms)}
            made |= {"line": {"color": look.ink.light, "width": 2}, "marker": marker, "hoverinfo": "text"}
            title = f"<b>{plot_text(short(stream.rule))}</b>, {when}"
            made["hovertext"] = [f"{title}<br>visit {visit}: RMS {number(value)}" for visit, value in enumerate(rms)]
            traces.append(made | on_panel(panel) | {"legendgroup": stream.rule})
    return Chart(
        "stream-over-visits",
        "RMS of the residual stream after each visit at the largest number of loops, before and after training.",
        Axis("visit (0 is the entry)"),
        log_axis("RMS of the stream", [rms for s in found for rms in (*s.initial, *s.final) if rms]),
        traces,
        ["at initialisation", "after training"],
        [LegendEntry(s.rule, f"{short(s.rule)} at {power(s.lr)}", styles[s.rule].ink) for s in found],
    )


def loss_over_strength(study: StudyInfo) -> Chart:
    """Where several strengths were swept: the best loss over rates at each strength."""
    inks, found = loop_inks(study), strength_info(study)
    names = list(dict.fromkeys(curve.rule for curve in found))
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(curve.strengths),
            "y": list(curve.losses),
            "line": {"color": inks.get(curve.loops, GREY).light, "width": 2},
            "marker": {"size": 7, "color": inks.get(curve.loops, GREY).light},
            "legendgroup": str(curve.loops),
            "hoverinfo": "text",
            "hovertext": [
                f"<b>N = {curve.loops}</b>, strength {strength:g}<br>best loss {number(loss, 4)}"
                for strength, loss in zip(curve.strengths, curve.losses, strict=True)
            ],
        }
        | on_panel(names.index(curve.rule) + 1)
        for curve in found
    ]
    swept = sorted({strength for curve in found for strength in curve.strengths})
    log = min(swept) > 0
    return Chart(
        "loss-over-strength",
        "Best loss over the strength lambda, one panel per rule, one line per number of loops.",
        Axis("strength \N{GREEK SMALL LETTER LAMDA}", {s: f"{s:g}" for s in swept}, None, log),
        Axis("best loss (nats)"),
        traces,
        [short(name) for name in names],
        [LegendEntry(str(n), f"N = {n}", inks.get(n, GREY)) for n in dict.fromkeys(sorted(c.loops for c in found))],
        [GREY],
    )
