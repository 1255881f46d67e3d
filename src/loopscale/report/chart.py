"""A chart as a value: what the page draws with plotly.js. Panels share their axes; the page places them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loopscale.report.palette import Ink, log_ticks

Trace = dict[str, Any]


class LegendEntry(NamedTuple):
    """A toggle beside the chart: traces whose legendgroup is `group` show and hide with it."""

    group: str
    label: str
    ink: Ink


class Axis(NamedTuple):
    """An axis that all panels share. `ticks` maps a position to its label (which may use plotly's <sup>)."""

    title: str
    ticks: Mapping[float, str] | None = None
    span: tuple[float, float] | None = None
    log: bool = False

    def layout(self) -> dict[str, Any]:
        """Plotly's layout of this axis."""
        made: dict[str, Any] = {"type": "log" if self.log else "linear", "zeroline": False, "automargin": False}
        if self.ticks:
            made |= {"tickmode": "array", "tickvals": list(self.ticks), "ticktext": list(self.ticks.values())}
        if self.span:
            made["range"] = list(self.span)
        return made


@dataclass(frozen=True)
class Chart:
    """Traces on one or several panels. `label` is the one sentence that a screen reader says for the picture."""

    name: str
    label: str
    x: Axis
    y: Axis
    traces: Sequence[Trace]
    panels: Sequence[str] = ("",)
    legend: Sequence[LegendEntry] = ()
    inks: Sequence[Ink] = ()
    shapes: Sequence[dict[str, Any]] = ()
    notes: Sequence[dict[str, Any]] = field(default=())

    def spec(self) -> dict[str, Any]:
        """The JSON value that the page's script draws; panel titles are escaped here, once."""
        layout: dict[str, Any] = {"shapes": list(self.shapes), "hovermode": "closest", "showlegend": False}
        titles = []
        for panel, title in enumerate(self.panels, start=1):
            x_key, y_key = axis_keys(panel)
            layout["xaxis" + x_key[1:]] = self.x.layout() | {"anchor": y_key} | ({"matches": "x"} if panel > 1 else {})
            layout["yaxis" + y_key[1:]] = self.y.layout() | {"anchor": x_key} | ({"matches": "y"} if panel > 1 else {})
            titles.append(_panel_title(plot_text(title), x_key, y_key))
        layout["annotations"] = titles + list(self.notes)
        return {
            "name": self.name,
            "data": list(self.traces),
            "layout": layout,
            "panels": len(self.panels),
            "titled": any(self.panels),
            "x_title": self.x.title,
            "y_title": self.y.title,
            "dark": {ink.light: ink.dark for ink in (*self.inks, *(entry.ink for entry in self.legend))},
        }


def plot_text(text: str) -> str:
    """Escape text for plotly, which reads a few HTML tags and entities in its labels.

    >>> plot_text("<b>&")
    '&lt;b&gt;&amp;'
    """
    return html.escape(text, quote=False).replace("\n", " ")


def axis_keys(panel: int) -> tuple[str, str]:
    """Plotly's names of the axes of a panel, counted from 1.

    >>> axis_keys(1), axis_keys(2)
    (('x', 'y'), ('x2', 'y2'))
    """
    return ("x", "y") if panel == 1 else (f"x{panel}", f"y{panel}")


def on_panel(panel: int) -> dict[str, str]:
    """Put a trace on a panel, counted from 1."""
    x_key, y_key = axis_keys(panel)
    return {"xaxis": x_key, "yaxis": y_key}


def whiskers(centre: Sequence[float], pairs: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    """Plotly's asymmetric error bars from intervals around `centre`; None draws none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(p[1] - c, 0.0) if p else 0.0 for c, p in zip(centre, pairs, strict=True)],
        "arrayminus": [max(c - p[0], 0.0) if p else 0.0 for c, p in zip(centre, pairs, strict=True)],
        "thickness": 1.4,
        "width": 4,
    }


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A log axis with ticks at 1, 2, 5; a linear one from zero where the `values` span less than a factor of 4."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if low <= 0 or high / low < 4:
        return Axis(title, None, (min(0.0, 1.08 * low), 1.08 * high))
    pad = 0.06 * math.log10(high / low)
    ticks = {tick: f"{tick:g}" for tick in log_ticks(low, high)}
    return Axis(title, ticks, (math.log10(low) - pad, math.log10(high) + pad), log=True)


def power_ticks(exponents: Sequence[int]) -> dict[float, str]:
    """Tick labels 2 to the given exponents, for an axis in log2."""
    return {float(e): f"2<sup>{str(e).replace('-', chr(0x2212))}</sup>" for e in exponents}


def _panel_title(text: str, x_key: str, y_key: str) -> dict[str, Any]:
    return {
        "text": f"<b>{text}</b>" if text else "",
        "xref": f"{x_key} domain",
        "yref": f"{y_key} domain",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
        "font": {"size": 14},
    }
