"""The two figures over the swept rates: the losses, and which cells diverged."""

from __future__ import annotations

import math
from typing import Any

from loopscale.report.chart import Axis, Chart, LegendEntry, Trace, axis_keys, on_panel, power_ticks, whiskers
from loopscale.report.info import Curve, StudyInfo, Window, any_diverged, curves, log_bounds, seed_range, share, shares
from loopscale.report.info import window as shared_window
from loopscale.report.palette import (
    GREY,
    PAPER,
    Ink,
    interval,
    nice_ticks,
    number,
    power,
    sequential,
    short,
    whole_ticks,
)

RATE = "learning rate (powers of 2)"


def loss_over_rate(study: StudyInfo) -> Chart:
    """Loss over learning rate: a panel a rule, a colour for each number of loops, the fitted optimum marked."""
    view, inks = shared_window(study), loop_inks(study)
    row = 0.05 * (view.loss_high - view.loss_low) if any_diverged(study) else 0.0
    top = view.loss_high + row * (len(study.loops) + 1.2)
    traces, shapes, notes = [], [], []
    for panel, rule in enumerate(study.rules.values(), start=1):
        found = curves(rule)
        for curve in found:
            ink = inks.get(curve.loops, GREY)
            height = view.loss_high + row * (0.9 + list(inks).index(curve.loops) if curve.loops in inks else 0.5)
            parts = [_curve(curve, ink, view.loss_high), *_diverged_marks(curve, ink, height), *_optimum(curve, ink)]
            traces += [part | on_panel(panel) | {"legendgroup": str(curve.loops)} for part in parts]
        first = next((curve.optimum for curve in found if curve.optimum), None)
        if first:
            shapes.append(_guide(panel, math.log2(first.lr)))
        if row:
            shapes.append(_ceiling(panel, view.loss_high))
            notes.append(_band_note(panel, view.loss_high + row * (len(study.loops) + 0.2)))
    losses = {tick: f"{tick:g}" for tick in nice_ticks(view.loss_low, view.loss_high)}
    return Chart(
        "loss-over-rate",
        "Loss over learning rate, one panel per rule, one line per number of loops, fitted optima marked.",
        _rate_axis(view),
        Axis("validation loss (nats)", losses, (view.loss_low, top)),
        traces,
        [short(name) for name in study.rules],
        [LegendEntry(str(loops), f"N = {loops}", ink) for loops, ink in inks.items()],
        [GREY, PAPER],
        shapes,
        notes,
    )


def _rate_axis(view: Window) -> Axis:
    span = (view.rate_low, view.rate_high)
    return Axis(RATE, power_ticks(whole_ticks(*span)), span)


def loop_inks(study: StudyInfo) -> dict[int, Ink]:
    """A colour for each number of loops of the study, the same in every figure."""
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
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [centre],
            "y": [best.loss],
            "error_x": whiskers([centre], [log_bounds(best.lr_interval)]) | {"color": ink.light},
            "marker": {
                "symbol": "diamond",
                "size": 10,
                "color": ink.light,
                "line": {"color": PAPER.light, "width": 1.5},
            },
            "hoverinfo": "text",
            "hovertext": [optimum_text(f"N = {curve.loops}: fitted optimum", curve)],
        }
    ]


def optimum_text(title: str, curve: Curve) -> str:
    """What the label of a fitted optimum says; `title` must be escaped already."""
    best = curve.optimum
    assert best is not None
    ends = best.lr_interval if log_bounds(best.lr_interval) else None
    bounds = f" [{power(ends[0])}, {power(ends[1])}]" if ends else ""
    edge = "<br>at the edge of the swept rates" if best.edge else ""
    loss = f"<br>loss {number(best.loss, 4)} {interval(best.loss_interval, 4)}"
    return f"<b>{title}</b><br>rate {power(best.lr)}{bounds}{loss}{edge}"


def _guide(panel: int, x: float) -> dict[str, Any]:
    """Where the optimum stands at the fewest loops: the line that a transferring rule stays on."""
    x_key, y_key = axis_keys(panel)
    line = {"color": GREY.light, "width": 1, "dash": "dot"}
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1}
    return {"type": "line", "xref": x_key, "yref": f"{y_key} domain", "layer": "below", "line": line} | ends


def _ceiling(panel: int, y: float) -> dict[str, Any]:
    """Where the window of losses ends and the band of diverged rates begins."""
    x_key, y_key = axis_keys(panel)
    line = {"color": GREY.light, "width": 0.7}
    ends = {"x0": 0, "x1": 1, "y0": y, "y1": y}
    return {"type": "line", "xref": f"{x_key} domain", "yref": y_key, "layer": "below", "line": line} | ends


def _band_note(panel: int, y: float) -> dict[str, Any]:
    x_key, y_key = axis_keys(panel)
    made = {"text": "diverged", "xref": f"{x_key} domain", "yref": y_key, "x": 0.01, "y": y, "showarrow": False}
    return made | {"xanchor": "left", "yanchor": "middle", "font": {"size": 11, "color": GREY.light}}


def diverged_cells(study: StudyInfo) -> Chart:
    """Trainability: which cells of loops x rate diverged, and for how many of their seeds."""
    lost, view = Ink("#b8304a", "#ff8296"), shared_window(study)
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
        _rate_axis(view),
        Axis("loops N", {float(i): str(loops) for i, loops in enumerate(study.loops)}, (-0.6, len(study.loops) - 0.4)),
        traces,
        [short(name) for name in study.rules],
        inks=[lost, GREY],
    )
