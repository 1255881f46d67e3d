"""Assemble one self-contained HTML page: sections with charts, their reading and their numbers. Works offline."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from loopscale.errors import require
from loopscale.records import clean
from loopscale.report.chart import Chart

# The browser itself refuses any request: the page can be mailed, archived and opened years later.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Table:
    """Rows of plain text under a header; cells are escaped when the page is made."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a page.

    `text` is plain and gets escaped; `body_html` is trusted and must come from this package, with its data passed
    through `escape`. `table` is the text alternative of `figure`; without a figure it is shown openly.
    """

    title: str
    text: str = ""
    body_html: str = ""
    figure: Chart | None = None
    how_to_read: str = ""
    table: Table | None = None


def escape(text: object) -> str:
    """Escape any value for HTML text and quoted attributes.

    >>> escape("<script>")
    '&lt;script&gt;'
    """
    return html.escape(clean(str(text)), quote=True)


def embed_json(value: Any) -> str:
    """Write JSON that is safe inside a script element: no character in it can end the element.

    >>> embed_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(clean(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render_page(
    title: str, lead: str, sections: Sequence[Section], provenance: Sequence[tuple[str, str]], *, kind: str = ""
) -> str:
    """Make the page: the lead sentence first and large, then the sections in order, provenance last.

    `kind` is the small line above the title ("transfer study"). Figures are numbered in their order.
    Raises `MissingExtraError` when there is a figure and plotly is not installed.
    """
    parts = [*sections]
    if provenance:
        parts.append(
            Section("Provenance", "Where these numbers come from.", table=Table(("what", "value"), provenance))
        )
    names = _anchors([part.title for part in parts])
    parts, specs = _unique_charts(parts)
    number, body = 0, []
    for part, name in zip(parts, names, strict=True):
        number += part.figure is not None
        body.append(_section(part, name, number))
    links = "".join(f'<li><a href="#{n}">{escape(p.title)}</a></li>' for p, n in zip(parts, names, strict=True))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="loopscale">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{_asset("page.css")}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="wide">
<p class="kind">{escape(kind or "loopscale")}</p>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
</header>
<nav class="wide" aria-label="Sections"><ul>{links}</ul></nav>
<main class="wide" id="main">
<noscript><p class="note">The charts need JavaScript; the numbers of each stand in the table below it.</p></noscript>
{"".join(body)}</main>
<footer class="wide"><p>Made by loopscale. This page is one file and makes no network request.</p></footer>
<p class="unseen" id="said" aria-live="polite"></p>
{_scripts(specs)}</body>
</html>
"""


def _scripts(specs: list[dict[str, Any]]) -> str:
    if not specs:
        return ""
    plotly_js: str = require("plotly.offline", "report").get_plotlyjs()
    return (
        f'<script type="application/json" id="charts">{embed_json(specs)}</script>\n'
        f"<script>{plotly_js}</script>\n<script>\n{_asset('page.js')}</script>\n"
    )


@cache
def _asset(name: str) -> str:
    return (files("loopscale.report") / name).read_text(encoding="utf-8")


def _anchors(titles: Sequence[str]) -> list[str]:
    """Make one id a title, unique on the page."""
    made: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        made.append(name if name not in made else f"{name}-{len(made)}")
    return made


def _unique_charts(parts: list[Section]) -> tuple[list[Section], list[dict[str, Any]]]:
    """Give every chart its own id, so that two sections may show charts of one name."""
    specs: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        if part.figure:
            name = f"chart-{len(specs) + 1}-" + re.sub(r"[^a-z0-9]+", "-", part.figure.name.lower())
            parts[i] = replace(part, figure=replace(part.figure, name=name))
            specs.append(replace(part.figure, name=name).spec())
    return parts, specs


def _section(part: Section, name: str, number: int) -> str:
    text = f"<p>{escape(part.text)}</p>\n" if part.text else ""
    figure = _figure(part, number) if part.figure else ""
    table = _table(part.table) if part.table and not part.figure else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(part.title)}</h2>\n'
        f"{text}{part.body_html}{figure}{table}</section>\n"
    )


def _figure(part: Section, number: int) -> str:
    chart = part.figure
    assert chart is not None
    reading = f"<p><b>How to read this.</b> {escape(part.how_to_read)}</p>" if part.how_to_read else ""
    numbers = (
        f"<details><summary>The numbers of figure {number}</summary>{_table(part.table)}</details>"
        if part.table
        else ""
    )
    return (
        f'<figure>\n{_legend(chart)}<div class="chart" id="{escape(chart.name)}" role="img" tabindex="0" '
        f'aria-label="{escape(chart.label)} Arrow keys step through the points."></div>\n'
        f'<figcaption><p class="count">Figure {number}</p>{reading}</figcaption>\n{numbers}</figure>\n'
    )


def _legend(chart: Chart) -> str:
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-chart="{escape(chart.name)}" '
        f'data-group="{escape(entry.group)}">'
        f'<span class="swatch" style="--light:{entry.ink.light};--dark:{entry.ink.dark}"></span>'
        f"{escape(entry.label)}</button></li>"
        for entry in chart.legend
    )
    return f'<ul class="legend" aria-label="Show or hide lines">{buttons}</ul>\n' if buttons else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    label = escape(table.caption or " ".join(table.header))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {label}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )
