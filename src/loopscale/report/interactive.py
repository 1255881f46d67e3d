"""The figures of a study, drawn for plotly.js."""

from __future__ import annotations

import math
from typing import Any

from loopscale.report.chart import (
    Axis,
    Chart,
    LegendEntry,
    Trace,
    axis_keys,
    on_panel,
    plot_text,
    power_ticks,
    whiskers,
)
from loopscale.report.info import Curve, StudyInfo, curves, drift_line, seed_range, share, shares, streams, window
from loopscale.report.info import strength_curves as strength_info
from loopscale.report.palette import Ink, Look, interval, looks, number, power, sequential, short, whole_ticks

GREY = Ink("#767b82", "#8f959c")
PAPER = Ink("#ffffff", "#181c20")
RATE = "learning rate (powers of 2)"


def charts(study: StudyInfo) -> dict[str, Chart]:
    """Every figure that the study has numbers for, by name, in page order."""
    drawn = [loss_over_rate(study), optimum_over_loops(study), loss_over_loops(study)]
    if streams(study):
        drawn.append(stream_over_visits(study))
    if any(cell.diverged for rule in study.rules.values() for cell in shares(rule)):
        drawn.append(diverged_cells(study))
    if strength_info(study):
        drawn.append(loss_over_strength(study))
    return {chart.name: chart for chart in drawn}


def loss_over_rate(study: StudyInfo) -> Chart:
    """Loss over learning rate: a panel a rule, a colour for each number of loops, the fitted optimum marked."""
    view, inks = window(study), _inks(study)
    span = view.loss_high - view.loss_low
    row = 0.05 * span
    any_row = any(cell.diverged for rule in study.rules.values() for cell in shares(rule))
    top = view.loss_high + (row * (len(study.loops) + 1.2) if any_row else 0.0)
    traces, shapes, notes = [], [], []
    for panel, rule in enumerate(study.rules.values(), start=1):
        found = curves(rule)
        for curve in found:
            height = view.loss_high + row * (0.9 + study.loops.index(curve.loops)) if curve.loops in inks else top
            ink = inks.get(curve.loops, GREY)
            parts = [_curve(curve, ink, view.loss_high), *_diverged_marks(curve, ink, height), *_optimum(curve, ink)]
            traces += [part | on_panel(panel) | {"legendgroup": str(curve.loops)} for part in parts]
        first = next((curve.optimum for curve in found if curve.optimum), None)
        if first:
            shapes.append(_guide(panel, math.log2(first.lr)))
        if any_row:
            notes.append(_band_note(panel, view.loss_high + row * (len(study.loops) + 0.2)))
    return Chart(
        "loss-over-rate",
        "Loss over learning rate, one panel per rule, one line per number of loops, fitted optima marked.",
        Axis(RATE, power_ticks(whole_ticks(view.rate_low, view.rate_high)), (view.rate_low, view.rate_high)),
        Axis("validation loss (nats)", None, (view.loss_low, top)),
        traces,
        [short(name) for name in study.rules],
        [LegendEntry(str(loops), f"N = {loops}", ink) for loops, ink in inks.items()],
        [GREY, PAPER],
        shapes,
        notes,
    )


def _inks(study: StudyInfo) -> dict[int, Ink]:
    return dict(zip(study.loops, sequential(len(study.loops)), strict=True))


def _curve(curve: Curve, ink: Ink, ceiling: float) -> Trace:
    """Mean loss with the range over seeds; a loss above the window is drawn at its edge as a triangle."""
    shown = [(point, point.loss) for point in curve.points if point.loss is not None]
    heights = [min(loss, ceiling) for _, loss in shown]
    ranges = [seed_range(point) for point, _ in shown]
    clipped = [(min(r[0], ceiling), min(r[1], ceiling)) if r else None for r in ranges]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [math.log2(point.lr) for point, _ in shown],
        "y": heights,
        "error_y": whiskers(heights, clipped) | {"color": ink.light, "width": 2, "thickness": 1},
        "line": {"color": ink.light, "width": 2},
        "marker": {
            "color": ink.light,
            "size": [9 if loss > ceiling else 5 for _, loss in shown],
            "symbol": ["triangle-up" if loss > ceiling else "circle" for _, loss in shown],
        },
        "hoverinfo": "text",
        "hovertext": [
            f"<b>N = {curve.loops}</b>, rate {power(point.lr)}<br>loss {number(loss, 4)}"
            + (f"<br>{len(point.losses)} seeds: {interval(r, 4)}" if r and len(point.losses) > 1 else "")
            for (point, loss), r in zip(shown, ranges, strict=True)
        ],
    }


def _diverged_marks(curve: Curve, ink: Ink, height: float) -> list[Trace]:
    cells = [cell for cell in (share(curve.loops, point) for point in curve.points) if cell.diverged]
    if not cells:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [math.log2(cell.lr) for cell in cells],
            "y": [height] * len(cells),
            "marker": {"symbol": "x-thin", "size": 7, "color": ink.light, "line": {"color": ink.light, "width": 2}},
            "hoverinfo": "text",
            "hovertext": [
                f"<b>N = {curve.loops}</b>, rate {power(cell.lr)}<br>diverged: {cell.diverged} of {cell.seeds} seeds"
                for cell in cells
            ],
        }
    ]


def _optimum(curve: Curve, ink: Ink) -> list[Trace]:
    best = curve.optimum
    if best is None:
        return []
    centre = math.log2(best.lr)
    bounds = (math.log2(best.lr_interval[0]), math.log2(best.lr_interval[1])) if _positive(best.lr_interval) else None
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [centre],
            "y": [best.loss],
            "error_x": whiskers([centre], [bounds]) | {"color": ink.light},
            "marker": {"symbol": "diamond", "size": 12, "color": ink.light, "line": {"color": PAPER.light, "width": 1.5}},
            "hoverinfo": "text",
            "hovertext": [_optimum_text(f"N = {curve.loops}: fitted optimum", curve)],
        }
    ]


def _optimum_text(title: str, curve: Curve) -> str:
    best = curve.optimum
    assert best is not None
    bounds = f" [{power(best.lr_interval[0])}, {power(best.lr_interval[1])}]" if _positive(best.lr_interval) else ""
    edge = "<br>at the edge of the swept rates" if best.edge else ""
    loss = f"<br>loss {number(best.loss, 4)} {interval(best.loss_interval, 4)}"
    return f"<b>{title}</b><br>rate {power(best.lr)}{bounds}{loss}{edge}"


def _positive(pair: tuple[float, float] | None) -> bool:
    return pair is not None and min(pair) > 0


def _guide(panel: int, x: float) -> dict[str, Any]:
    """Where the optimum stands at the fewest loops: the line that a transferring rule stays on."""
    x_key, y_key = axis_keys(panel)
    line = {"color": GREY.light, "width": 1, "dash": "dot"}
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1}
    return {"type": "line", "xref": x_key, "yref": f"{y_key} domain", "layer": "below", "line": line} | ends


def _band_note(panel: int, y: float) -> dict[str, Any]:
    x_key, y_key = axis_keys(panel)
    made = {"text": "diverged", "xref": f"{x_key} domain", "yref": y_key, "x": 0.01, "y": y, "showarrow": False}
    return made | {"xanchor": "left", "yanchor": "middle", "font": {"size": 11, "color": GREY.light}}


def optimum_over_loops(study: StudyInfo) -> Chart:
    """The fitted optimal rate over loops, log-log, with the fitted slope of each rule."""
    styles, traces, legend, heights = looks(list(study.rules)), [], [], []
    for position, (name, rule) in enumerate(study.rules.items()):
        look, line = styles[name], drift_line(rule)
        if line:
            traces.append(_line([p[0] for p in line], [p[1] for p in line], look, name))
        bounds = [
            (math.log2(c.optimum.lr_interval[0]), math.log2(c.optimum.lr_interval[1]))
            if c.optimum and c.optimum.lr_interval and _positive(c.optimum.lr_interval)
            else None
            for c in curves(rule)
            if c.optimum
        ]
        rates = [math.log2(c.optimum.lr) for c in curves(rule) if c.optimum]
        heights += [*rates, *(end for pair in bounds if pair for end in pair)]
        traces.append(_rule_points(study, position, look, rates, bounds))
        legend.append(LegendEntry(name, f"{short(name)}: slope {number(rule.slope)} {_bounds(rule.slope_interval)}", look.ink))
    low, high = (min(heights) - 0.5, max(heights) + 0.5) if heights else (-8.0, -4.0)
    return Chart(
        "optimum-over-loops",
        "Fitted optimal learning rate over loops for each rule, with intervals and the fitted slope.",
        _loops_axis(study),
        Axis("optimal learning rate", power_ticks(whole_ticks(low, high)), (low, high)),
        traces,
        legend=legend,
    )


def _bounds(pair: tuple[float, float] | None) -> str:
    return interval(pair)


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
        "hovertext": [_optimum_text(f"{plot_text(short(name))}, N = {c.loops}", c) for c in found],
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
        Axis("RMS of the stream", log=True),
        traces,
        ["at initialisation", "after training"],
        [LegendEntry(s.rule, f"{short(s.rule)} at {power(s.lr)}", styles[s.rule].ink) for s in found],
    )


def diverged_cells(study: StudyInfo) -> Chart:
    """Trainability: which cells of loops x rate diverged, and for how many of their seeds."""
    calm, lost, view = Ink("#e4ece9", "#22312f"), Ink("#b8304a", "#ff8296"), window(study)
    traces = []
    for panel, rule in enumerate(study.rules.values(), start=1):
        cells = shares(rule)
        made: Trace = {"type": "scatter", "mode": "markers", "hoverinfo": "text"}
        made["x"] = [math.log2(cell.lr) for cell in cells]
        made["y"] = [study.loops.index(cell.loops) if cell.loops in study.loops else -1 for cell in cells]
        made["marker"] = {
            "symbol": ["circle" if not cell.diverged else "x" for cell in cells],
            "size": [9 if not cell.diverged else 8 + 5 * cell.diverged / cell.seeds for cell in cells],
            "color": [lost.light if cell.diverged else GREY.light for cell in cells],
            "opacity": [1.0 if cell.diverged else 0.35 for cell in cells],
        }
        made["hovertext"] = [
            f"<b>N = {c.loops}</b>, rate {power(c.lr)}<br>diverged: {c.diverged} of {c.seeds} seeds" for c in cells
        ]
        traces.append(made | on_panel(panel))
    return Chart(
        "diverged-cells",
        "Which combinations of loops and learning rate diverged, one panel per rule.",
        Axis(RATE, power_ticks(whole_ticks(view.rate_low, view.rate_high)), (view.rate_low, view.rate_high)),
        Axis("loops N", {float(i): str(loops) for i, loops in enumerate(study.loops)}, (-0.6, len(study.loops) - 0.4)),
        traces,
        [short(name) for name in study.rules],
        inks=[calm, lost, GREY],
    )


def loss_over_strength(study: StudyInfo) -> Chart:
    """Where several strengths were swept: the best loss over rates at each strength."""
    inks, found = _inks(study), strength_info(study)
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
