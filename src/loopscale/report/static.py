"""The figures of a study for papers, drawn by matplotlib without its global state; the bytes are reproducible."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loopscale.errors import require
from loopscale.report.info import (
    StudyInfo,
    any_diverged,
    curves,
    drift_line,
    log_bounds,
    seed_range,
    shares,
    streams,
    window,
)
from loopscale.report.info import strength_curves as strength_info
from loopscale.report.palette import interval, log_ticks, looks, nice_ticks, number, sequential, short, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {
    "svg.hashsalt": "loopscale",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f96",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ecece7",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
}
_DATELESS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside: matplotlib's settings are ours, and restored afterwards."""
    with require("matplotlib", "report").rc_context(_STYLE):
        yield


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches, tied to no window and to no global list."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def render(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """The bytes of a figure as "svg", "png" or "pdf"; call it inside `style`."""
    held = io.BytesIO()
    figure.savefig(held, format=kind, dpi=dpi, metadata=_DATELESS[kind])
    return held.getvalue()


def rendered_figures(study: StudyInfo) -> dict[str, bytes]:
    """Every figure that the study has numbers for, as {file name: bytes}, in SVG, PNG and PDF.

    Raises `MissingExtraError` without matplotlib.
    """
    with style():
        return {
            f"{name}.{kind}": render(figure, kind)
            for name, figure in figures(study).items()
            for kind in ("svg", "png", "pdf")
        }


def figures(study: StudyInfo) -> dict[str, Figure]:
    """The drawn figures by name; call it inside `style`."""
    drawers: dict[str, Callable[[StudyInfo], Figure]] = {
        "loss-over-rate": loss_over_rate,
        "optimum-over-loops": optimum_over_loops,
        "loss-over-loops": loss_over_loops,
    }
    if streams(study):
        drawers["stream-over-visits"] = stream_over_visits
    if any_diverged(study):
        drawers["diverged-cells"] = diverged_cells
    if strength_info(study):
        drawers["loss-over-strength"] = loss_over_strength
    return {name: draw(study) for name, draw in drawers.items()}


def loss_over_rate(study: StudyInfo) -> Figure:
    """Loss over learning rate: a panel a rule, a colour for each number of loops."""
    figure, panels = _panel_row(study, list(study.rules), 3.1)
    for axes, name in zip(panels, study.rules, strict=True):
        rate_panel(axes, study, name)
    panels[0].set_ylabel("validation loss (nats)")
    loops_legend(figure, panels[0])
    return figure


def _panel_row(study: StudyInfo, titles: list[str], height: float) -> tuple[Figure, list[Axes]]:
    columns = min(len(titles), 3)
    rows = math.ceil(len(titles) / columns)
    figure = blank(2.7 * columns + 0.8, height * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(short(title))
    return figure, panels[: len(titles)]


def loops_legend(figure: Figure, axes: Axes) -> None:
    """One legend beside all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", handlelength=1.2)


def rate_panel(axes: Axes, study: StudyInfo, name: str) -> None:
    """Draw one rule's losses over the rate, its optima, and its diverged rates in a band above the window."""
    view, colours = window(study), [ink.light for ink in sequential(len(study.loops))]
    row, any_row = 0.055 * (view.loss_high - view.loss_low), any_diverged(study)
    for position, loops in enumerate(study.loops):
        found = [curve for curve in curves(study.rules[name]) if curve.loops == loops]
        points = [point for curve in found for point in curve.points]
        shown = [(math.log2(p.lr), p.loss, seed_range(p) or (p.loss, p.loss)) for p in points if p.loss is not None]
        xs = [x for x, _, _ in shown]
        colour = colours[position]
        axes.plot(xs, [y for _, y, _ in shown], color=colour, lw=1.4, marker="o", ms=2.6, label=f"N = {loops}")
        axes.vlines(xs, [r[0] for _, _, r in shown], [r[1] for _, _, r in shown], color=colour, lw=0.9, alpha=0.7)
        best = study.rules[name].optima.get(loops)
        if best:
            axes.plot(math.log2(best.lr), best.loss, "D", ms=6.5, color=colour, mec="white", mew=0.9, zorder=5)
        lost = [math.log2(p.lr) for p in points if p.loss is None or None in p.losses]
        axes.plot(lost, [view.loss_high + row * (0.9 + position)] * len(lost), "x", ms=4, mew=1.2, color=colour)
    first = next((curve.optimum for curve in curves(study.rules[name]) if curve.optimum), None)
    if first:
        axes.axvline(math.log2(first.lr), color="#767b82", lw=0.8, ls=":", zorder=0)
    top = view.loss_high
    axes.set_yticks(nice_ticks(view.loss_low, view.loss_high))
    if any_row:
        axes.axhline(top, color="#c3c7cb", lw=0.6, zorder=0)
        top += row * (len(study.loops) + 1.2)
        axes.text(
            0.02,
            view.loss_high + row * (len(study.loops) + 0.2),
            "diverged",
            color="#767b82",
            fontsize=7.5,
            va="center",
            transform=axes.get_yaxis_transform(),
        )
    axes.set_xlim(view.rate_low, view.rate_high)
    axes.set_ylim(view.loss_low, top)
    power_axis(axes, "x", view.rate_low, view.rate_high)
    axes.set_xlabel("learning rate")


def power_axis(axes: Axes, which: str, low: float, high: float, most: int = 8) -> None:
    """Label a log2 axis with powers of two."""
    ticks = whole_ticks(low, high, most)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks)
    axis.set_ticklabels([f"$2^{{{tick}}}$" for tick in ticks], parse_math=True)


def optimum_over_loops(study: StudyInfo) -> Figure:
    """The fitted optimal rate over loops with the fitted slopes."""
    figure = blank(4.8, 3.5)
    axes = figure.subplots()
    optimum_axes(axes, study)
    axes.legend(loc="best")
    return figure


def optimum_axes(axes: Axes, study: StudyInfo) -> None:
    """Draw the optimum of every rule over loops, log-log."""
    heights: list[float] = []
    for position, (name, rule) in enumerate(study.rules.items()):
        found = [(c.loops, c.optimum) for c in curves(rule) if c.optimum]
        ys = [math.log2(best.lr) for _, best in found]
        bounds = [log_bounds(best.lr_interval) or (y, y) for y, (_, best) in zip(ys, found, strict=True)]
        heights += [*ys, *(end for pair in bounds for end in pair)]
        label = f"{_label(name)}: slope {number(rule.slope, 2)} {interval(rule.slope_interval, 2)}".rstrip()
        _rule_marks(axes, study, position, ys, bounds, label)
        line = drift_line(rule)
        if line:
            axes.plot(*zip(*line, strict=True), color=looks(list(study.rules))[name].ink.light, lw=1.2, ls=":")
    low, high = (min(heights) - 0.4, max(heights) + 0.4) if heights else (-8.0, -4.0)
    axes.set_ylim(low, high)
    power_axis(axes, "y", low, high)
    axes.set_ylabel("optimal learning rate")
    _loops_axis(axes, study)


def _label(name: str) -> str:
    """A rule's name for a legend; matplotlib hides labels that begin with an underscore."""
    return f" {short(name)}" if name.startswith("_") else short(name)


def _rule_marks(
    axes: Axes, study: StudyInfo, position: int, ys: list[float], bounds: list[tuple[float, float]], label: str
) -> None:
    """The optima of the rule at `position` with their intervals; hollow where at the edge of the swept rates."""
    name = list(study.rules)[position]
    look, optima = looks(list(study.rules))[name], sorted(study.rules[name].optima.items())
    aside = 0.05 * (position - (len(study.rules) - 1) / 2)
    reach = [[max(y - pair[0], 0.0) for y, pair in zip(ys, bounds, strict=True)]]
    reach.append([max(pair[1] - y, 0.0) for y, pair in zip(ys, bounds, strict=True)])
    xs = [math.log2(loops) + aside for loops, _ in optima]
    axes.errorbar(xs, ys, reach, color=look.ink.light, fmt=look.mpl_marker, ms=5.5, lw=1.2, capsize=2.5, label=label)
    edges = [(x, y) for x, y, (_, best) in zip(xs, ys, optima, strict=True) if best.edge]
    for x, y in edges:
        axes.plot(x, y, look.mpl_marker, ms=5.5, mfc="white", mec=look.ink.light, zorder=5)


def _loops_axis(axes: Axes, study: StudyInfo) -> None:
    axes.set_xticks([math.log2(n) for n in study.loops], [str(n) for n in study.loops])
    axes.set_xlabel("loops N")


def loss_over_loops(study: StudyInfo) -> Figure:
    """The loss at each rule's own optimum over loops."""
    figure = blank(4.8, 3.5)
    axes = figure.subplots()
    for position, (name, rule) in enumerate(study.rules.items()):
        found = [(c.loops, c.optimum) for c in curves(rule) if c.optimum]
        ys = [best.loss for _, best in found]
        bounds = [best.loss_interval or (best.loss, best.loss) for _, best in found]
        _rule_marks(axes, study, position, ys, bounds, _label(name))
        aside = 0.05 * (position - (len(study.rules) - 1) / 2)
        colour = looks(list(study.rules))[name].ink.light
        axes.plot([math.log2(n) + aside for n, _ in found], ys, color=colour, lw=1.4)
    _loops_axis(axes, study)
    axes.set_ylabel("loss at the optimum (nats)")
    axes.legend(loc="best")
    return figure


def stream_over_visits(study: StudyInfo) -> Figure:
    """RMS of the stream after each visit at the largest loops, before and after training."""
    styles = looks(list(study.rules))
    figure, panels = _panel_row(study, ["at initialisation", "after training"], 3.0)
    for stream in streams(study):
        look = styles[stream.rule]
        for axes, rms in zip(panels, (stream.initial, stream.final), strict=True):
            ys = [math.nan if value is None else value for value in rms]
            axes.plot(
                range(len(ys)),
                ys,
                color=look.ink.light,
                marker=look.mpl_marker,
                ms=3.5,
                lw=1.4,
                label=_label(stream.rule),
            )
    heights = [rms for stream in streams(study) for rms in (*stream.initial, *stream.final) if rms]
    for axes in panels:
        axes.set_yscale("log")
        ticks = log_ticks(min(heights, default=1.0), max(heights, default=1.0))
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_xlabel("visit (0 is the entry)")
    panels[0].set_ylabel("RMS of the stream")
    loops_legend(figure, panels[0])
    return figure


def diverged_cells(study: StudyInfo) -> Figure:
    """Which cells of loops x rate diverged."""
    figure, panels = _panel_row(study, list(study.rules), 2.4)
    view = window(study)
    for axes, rule in zip(panels, study.rules.values(), strict=True):
        for cell in shares(rule):
            at = study.loops.index(cell.loops) if cell.loops in study.loops else -1
            size, colour = 4 + 3 * cell.diverged / cell.seeds, "#b8304a" if cell.diverged else "#c3c7cb"
            axes.plot(math.log2(cell.lr), at, "x" if cell.diverged else "o", ms=size, mew=1.5, color=colour)
        axes.set_yticks(range(len(study.loops)), [str(n) for n in study.loops])
        axes.set_xlabel("learning rate")
        power_axis(axes, "x", view.rate_low, view.rate_high)
    panels[0].set_ylabel("loops N")
    return figure


def loss_over_strength(study: StudyInfo) -> Figure:
    """The best loss over the strength."""
    found = strength_info(study)
    names = list(dict.fromkeys(curve.rule for curve in found))
    colours = dict(zip(study.loops, (ink.light for ink in sequential(len(study.loops))), strict=True))
    figure, panels = _panel_row(study, names, 3.0)
    for curve in found:
        axes = panels[names.index(curve.rule)]
        colour = colours.get(curve.loops, "#767b82")
        axes.plot(curve.strengths, curve.losses, color=colour, marker="o", ms=4, lw=1.4, label=f"N = {curve.loops}")
        axes.set_xlabel("strength \N{GREEK SMALL LETTER LAMDA}")
    panels[0].set_ylabel("best loss (nats)")
    loops_legend(figure, panels[0])
    return figure
