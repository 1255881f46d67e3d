"""A figure as a value: marks on shared axes. One Altair specification draws the page's chart and SVG, PNG and PDF."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loopscale.files import replacing
from loopscale.report.palette import Ink, Look, theme

if TYPE_CHECKING:
    import altair as alt

Pair = tuple[float, float]


class Axis(NamedTuple):
    """An axis that all panels share. `ticks` maps a position to its label, `span` is what is shown."""

    title: str
    ticks: Mapping[float, str] | None = None
    span: Pair | None = None
    log: bool = False


class Mark(NamedTuple):
    """One thing that is measured. `said` is its text: the hover label, what a keyboard reads out, a row of the table.

    `up` and `across` are intervals along the axes; `line` joins marks of one series ("solid" or "dotted"). A `shape`
    stands instead of the shape of the series; "" draws the series' own, "none" only the line. `shade` is a third value,
    shown by colour.
    """

    x: float
    y: float | None
    series: str
    said: Mapping[str, str] = {}
    panel: str = ""
    line: str = ""
    shape: str = ""
    up: Pair | None = None
    across: Pair | None = None
    hollow: bool = False
    shade: float | None = None


class Guide(NamedTuple):
    """A thin line across a panel at `x` or at `y`, with a short note."""

    panel: str = ""
    x: float | None = None
    y: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """Marks, guides and axes. `label` is the sentence that a screen reader says for the picture.

    `series` gives every series its look, in the order of the legend; `labels` its words there. `panels` is their order;
    panels stand `apart` when each has its own range along x.
    """

    name: str
    label: str
    x: Axis
    y: Axis
    series: Mapping[str, Look]
    marks: Sequence[Mark]
    guides: Sequence[Guide] = ()
    panels: Sequence[str] = ("",)
    labels: Mapping[str, str] = field(default_factory=dict)
    shade: Axis | None = None
    height: int = 260
    apart: bool = False

    @property
    def inks(self) -> list[Ink]:
        """The colours of the series, in their order."""
        return [look.ink for look in self.series.values()]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows of the numbers that the figure shows: its text alternative."""
        rows = [mark.said for mark in self.marks if mark.said]
        header = list(dict.fromkeys(name for said in rows for name in said))
        return header, [[said.get(name, "") for name in header] for said in rows]

    def spec(self, *, page: bool = False, columns: int = 3, width: int = 0) -> dict[str, Any]:
        """Make the Vega-Lite specification: with colours and legend for a file; without, and with handles, for a page."""
        import altair as alt
        from altair.utils.schemapi import debug_mode

        rows, wide = _rows(self), width or (250 if any(self.panels) else 440)
        with debug_mode(False):  # tests hold every figure to the schema; here it would take half the time
            layers = [
                layer.to_dict(validate=False, context={"top_level": False}) for layer in _layers(alt, self, rows, page)
            ]
            for layer in layers:
                del layer["data"]  # a layer has the figure's
            made: dict[str, Any] = {"layer": layers, "width": wide, "height": self.height}
            if any(self.panels):
                head = alt.Header(title=None, labelLimit=wide)
                facet = alt.Facet("panel:N", sort=[one_line(panel) for panel in self.panels], header=head)
                made = {"facet": facet.to_dict(validate=False), "spec": made, "columns": columns, "bounds": "flush"}
                made["spacing"] = {"row": 70 if self.apart else 34, "column": 18}
                if self.apart:
                    made["resolve"] = {"scale": {"x": "independent"}}
        if page:  # what is hidden by the legend, and where the keyboard is
            made["params"] = [{"name": "hidden", "value": []}, {"name": "at", "value": -1}]
        config = {} if page else theme(self.inks) | {"background": "white", "padding": 8}
        return made | {
            "$schema": alt.SCHEMA_URL,
            "description": self.label,
            "data": {"values": rows},
            "config": config,
        }


def render(spec: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw a specification as {"svg", "png", "pdf"}: the same bytes for the same specification."""
    import vl_convert

    svg = _renumbered(vl_convert.vegalite_to_svg(dict(spec), vl_version=_version()))
    pdf = _in_order(vl_convert.svg_to_pdf(svg))
    return {"svg": svg.encode(), "png": vl_convert.svg_to_png(svg, scale=2), "pdf": pdf}


def drawn_files(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Draw figures as files: NAME.svg, NAME.png and NAME.pdf."""
    return {
        f"{name}.{kind}": content for name, figure in figures.items() for kind, content in render(figure.spec()).items()
    }


def write_drawn(folder: Path, drawn: Mapping[str, bytes]) -> list[Path]:
    """Write drawn files into a folder; return their paths."""
    for name, content in drawn.items():
        with replacing(folder / name) as aside:
            aside.write_bytes(content)
    return [folder / name for name in drawn]


def _renumbered(svg: str) -> str:
    """Count the clips of a picture from 0: Vega counts all that its process drew."""
    names: dict[str, str] = {}
    return re.sub(r"\bclip\d+\b", lambda found: names.setdefault(found[0], f"clip{len(names)}"), svg)


def _in_order(pdf: bytes) -> bytes:
    """Sort the entries of a PDF's resource tables, which vl-convert writes in random order; their length stays."""
    tables = re.compile(rb"(?<=<<\n)(?: +/\w+ \d+ 0 R\n){2,}")
    return tables.sub(lambda found: b"".join(sorted(found[0].splitlines(keepends=True))), pdf)


@cache
def bundle() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, for a page that needs no network; made once per process."""
    import vl_convert

    return vl_convert.javascript_bundle("window.embed = vegaEmbed;", vl_version=_version())


def _version() -> str:
    """Return the version of Vega-Lite that Altair writes, as vl-convert names it."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def one_line(text: str) -> str:
    """Put a name on one line: a label has no other."""
    return " ".join(text.split())


def said_text(said: Mapping[str, str]) -> str:
    """Return what a hover label says: a line for each number."""
    return "\n".join(f"{name} {value}".strip() for name, value in said.items() if value)


def _rows(figure: Figure) -> list[dict[str, Any]]:
    """Return the data of the specification; what is empty is left out, so that a layer finds its rows by one key."""
    rows: list[dict[str, Any]] = []
    for mark in figure.marks:
        low, high = mark.up or (None, None)
        left, right = mark.across or (None, None)
        drawn = "" if mark.shape in ("diverged", "none") else mark.shape
        rows.append({
            "id": len(rows), "x": mark.x, "y": mark.y, "series": one_line(mark.series), "panel": one_line(mark.panel),
            mark.line: True, "own": not (mark.shape or mark.hollow), "diverged": mark.shape == "diverged",
            "shape": drawn, "hollow": mark.hollow, "shade": mark.shade, "low": low, "high": high, "left": left,
            "right": right, "said": said_text(mark.said),
        })  # fmt: skip
    for guide in figure.guides:
        rows.append({"panel": one_line(guide.panel), "guide_x": guide.x, "guide_y": guide.y, "note": guide.note})
    return [{key: value for key, value in row.items() if key and not (value is None or value is False or value == "")}
            for row in rows]  # fmt: skip


_CROSS = "M-.7,-.7L.7,.7M.7,-.7L-.7,.7"
_DASHES = {"solid": [1, 0], "dotted": [2, 3], "dashed": [6, 4]}


def _layers(alt: Any, figure: Figure, rows: list[dict[str, Any]], page: bool) -> list[alt.Chart]:
    """Return the layers from back to front: guides, lines, intervals, marks, and the ring around the keyboard's mark."""

    def x(name: str = "x") -> Any:
        return _channel(alt, alt.X, name, figure.x, padding=14 if figure.apart else 0)

    def y(name: str = "y") -> Any:
        return _channel(alt, alt.Y, name, figure.y)

    def mark(kind: str, **style: Any) -> Any:
        return getattr(alt.Chart(), f"mark_{kind}")(aria=False, **style)

    color, shape = _by_series(alt, figure, page)
    colored = [row["shade"] for row in rows if "shade" in row and "own" in row]
    own = color if figure.shade is None else _by_shade(alt, figure.shade, colored)
    other = alt.Shape("shape:N", scale=None)
    guide, note = {"style": "guide", "strokeDash": [2, 3]}, {"style": "note", "align": "left", "baseline": "bottom"}
    layers = [
        ("guide_x", mark("rule", **guide), {"x": x("guide_x")}),
        ("guide_y", mark("rule", **guide), {"y": y("guide_y")}),
        ("note", mark("text", **note, dx=3, dy=-2), {"x": alt.value(0), "y": y("guide_y"), "text": "note:N"}),
        *((name, mark("line", strokeWidth=1.8, strokeDash=dash), {"x": x(), "y": y(), "color": color})
          for name, dash in _DASHES.items()),
        ("low", mark("rule", strokeWidth=1.3, clip=True), {"x": x(), "y": y("low"), "y2": "high:Q", "color": color}),
        ("left", mark("rule", strokeWidth=1.8, clip=True), {"x": x("left"), "x2": "right:Q", "y": y(), "color": color}),
        ("own", mark("point", filled=True, size=42, opacity=1), {"shape": shape, "color": own}),
        ("hollow", mark("point", style="hollow", size=48, strokeWidth=1.6), {"shape": shape, "color": color}),
        ("diverged", mark("point", shape=_CROSS, size=42, strokeWidth=1.6), {"color": color}),
        ("shape", mark("point", style="edged", filled=True, size=150, opacity=1), {"shape": other, "color": color}),
        ("said", mark("point", style="ring", size=300, strokeWidth=2, fill="transparent"),
         {"strokeOpacity": alt.condition("datum.id === at", alt.value(1), alt.value(0))}),
    ]  # fmt: skip
    made = []
    for key, chart, channels in layers:
        if (key == "said" and not page) or not any(key in row for row in rows):  # it would draw nothing
            continue
        chosen = f"isValid(datum.{key})"
        if page and key not in ("guide_x", "guide_y", "note"):
            chosen += " && indexof(hidden, datum.series) < 0"
        place = {} if {"x", "y"} & channels.keys() else {"x": x(), "y": y()}
        made.append(chart.encode(**place, **channels).transform_filter(chosen))
    return made


def _by_series(alt: Any, figure: Figure, page: bool) -> tuple[Any, Any]:
    """Colour and shape of the series. A page has its own legend, of buttons."""
    names = [one_line(name) for name in figure.series]
    words = {name: figure.labels.get(key, name) for key, name in zip(figure.series, names, strict=True)}
    legend = None
    if not page and len(names) > 1:
        columns = 2 if figure.labels else 6
        legend = alt.Legend(title=None, orient="bottom", columns=columns, labelExpr=_lookup(words, "datum.label"))
    shapes = [look.shape for look in figure.series.values()]
    color = alt.Color("series:N", scale=alt.Scale(domain=names), legend=legend)
    return color, alt.Shape("series:N", scale=alt.Scale(domain=names, range=shapes), legend=legend)


def _by_shade(alt: Any, shade: Axis, values: Sequence[float]) -> Any:
    """Colour by a third value, with its scale as a strip above the figure; labels end where the strip does."""
    scale = alt.Scale(type="log" if shade.log else "linear", nice=False)
    inside = [at for at in shade.ticks or () if values and min(values) <= at <= max(values)]
    told: dict[str, Any] = {"values": inside} if inside else {"tickCount": 3}
    legend = alt.Legend(orient="top", direction="horizontal", gradientLength=180, format=".2~g", offset=8, **told)
    return alt.Color("shade:Q", title=shade.title, scale=scale, legend=legend)


def _channel(alt: Any, kind: Any, name: str, axis: Axis, padding: float = 0) -> Any:
    drawn = alt.Axis(labelFlush=False, labelOverlap="greedy", tickCount=6 if padding else alt.Undefined)
    if axis.ticks is not None:
        labels = {f"{at:g}": label for at, label in axis.ticks.items()}
        drawn = alt.Axis(values=list(axis.ticks), labelExpr=_lookup(labels, "datum.value"), labelOverlap="greedy")
    span = alt.Undefined if axis.span is None else list(axis.span)
    zero = alt.Undefined if axis.log else False
    scale = alt.Scale(type="log" if axis.log else "linear", domain=span, zero=zero, nice=False,
                      padding=padding or alt.Undefined)  # fmt: skip
    return kind(f"{name}:Q", title=axis.title, axis=drawn, scale=scale)


def _lookup(words: Mapping[str, str], key: str) -> str:
    """Return a Vega expression: the word for `key`."""
    return f"{json.dumps(dict(words))}[{key}]"
