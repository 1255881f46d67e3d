"""Assemble one self-contained HTML page: sections with figures, their reading and their numbers. Works offline."""

from __future__ import annotations

import html
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from loopscale.files import write_text
from loopscale.records import clean, flat
from loopscale.report.figure import Figure, bundle, one_line
from loopscale.report.palette import GLYPHS, theme

# The browser itself refuses any request: the page can be mailed, archived and opened years later.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


MOST_ROWS = 400


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
    through `escape`. A figure brings its numbers as a table that unfolds; `table` is shown openly, and `more` unfolds
    from its caption.
    """

    title: str
    text: str = ""
    body_html: str = ""
    figure: Figure | None = None
    how_to_read: str = ""
    table: Table | None = None
    more: Table | None = None


def explained(figure: Figure, text: str = "", words: str = "", **blanks: str) -> Section:
    """Return the section of a figure, with title and reading from words.toml (of `words`), whose braces `blanks` fill."""
    row = _words()[words or figure.name]
    title, reading = (" ".join(row[key].split()).format(**blanks) for key in ("title", "reading"))
    return Section(title, text, figure=figure, how_to_read=reading)


def escape(text: object) -> str:
    """Escape any value for HTML text and quoted attributes.

    >>> escape("<script>")
    '&lt;script&gt;'
    """
    return html.escape(clean(str(text)), quote=True)


def prose(text: str) -> str:
    """Escape a sentence for HTML; what stands between backticks is code, -> an arrow.

    >>> prose("`layers`: 11 -> 1")
    '<code>layers</code>: 11 → 1'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text).replace("-&gt;", "\N{RIGHTWARDS ARROW}"))


def embed_json(value: Any) -> str:
    """Write JSON that is safe inside a script element: no character in it can end the element.

    >>> embed_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(clean(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render_page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    provenance: Sequence[tuple[str, str]],
    *,
    kind: str = "loopscale",
    files: str = "",
    refresh: int = 0,
) -> str:
    """Make the page: the lead sentence first and large, then the sections in order, provenance last.

    `kind` is the small line above the title ("transfer study"). `files` is the folder beside the page in which each figure
    lies as SVG, PNG and PDF. A page that changes loads itself again every `refresh` seconds. Figures are numbered.
    """
    parts = [*sections]
    if provenance:
        parts.append(
            Section("Provenance", "Where these numbers come from.", table=Table(("what", "value"), provenance))
        )
    names = _anchors([part.title for part in parts])
    drawn = [part.figure for part in parts if part.figure]
    number, body = 0, []
    for part, name in zip(parts, names, strict=True):
        number += part.figure is not None
        body.append(_section(part, name, number, files))
    again = f'\n<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    links = "".join(f'<li><a href="#{n}">{escape(p.title)}</a></li>' for p, n in zip(parts, names, strict=True))
    return _asset("page.html").format(
        policy=_POLICY,
        again=again,
        title=escape(title),
        style=_asset("page.css"),
        kind=escape(kind),
        lead=prose(lead),
        links=links,
        body="".join(body),
        scripts=_scripts(drawn),
    )


def write_page(folder: Path, text: str) -> Path:
    """Write report.html into a folder; return its path."""
    write_text(folder / "report.html", text)
    return folder / "report.html"


def _scripts(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    themes = {"light": theme([]), "dark": theme([], dark=True)}
    for each in themes.values():
        each["font"] = (
            "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"
        )
        each["header"]["labelFontWeight"] = "bold"
    made = [
        {
            "name": _identity(number, figure),
            "spec": figure.spec(page=True),
            "panels": len(figure.panels),
            "inks": {"light": [ink.light for ink in figure.inks], "dark": [ink.dark for ink in figure.inks]},
        }
        for number, figure in enumerate(figures, start=1)
    ]
    return (
        f'<script type="application/json" id="figures">{embed_json({"themes": themes, "figures": made})}</script>\n'
        f"<script>{bundle()}</script>\n<script>\n{_asset('page.js')}</script>\n"
    )


def _identity(number: int, figure: Figure) -> str:
    """Return an id of its own for every figure, so that two sections may show figures of one name."""
    return f"figure-{number}-" + re.sub(r"[^a-z0-9]+", "-", figure.name.lower())


@cache
def _words() -> dict[str, dict[str, str]]:
    return tomllib.loads(_asset("words.toml"))


@cache
def _asset(name: str) -> str:
    return (resources.files("loopscale.report") / name).read_text(encoding="utf-8")


def _anchors(titles: Sequence[str]) -> list[str]:
    """Make one id a title, unique on the page."""
    made: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        made.append(name if name not in made else f"{name}-{len(made)}")
    return made


def _section(part: Section, name: str, number: int, files: str) -> str:
    text = f"<p>{prose(part.text)}</p>\n" if part.text else ""
    figure = _figure(part.figure, part.how_to_read, number, files) if part.figure else ""
    table = _table(part.table) if part.table else ""
    if part.more and part.more.rows:
        bare = replace(part.more, caption="")
        table += f"<details><summary>{escape(part.more.caption)}</summary>{_table(bare)}</details>\n"
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(part.title)}</h2>\n'
        f"{text}{part.body_html}{figure}{table}</section>\n"
    )


def _figure(figure: Figure, how_to_read: str, number: int, files: str) -> str:
    reading = f"<p><b>How to read this.</b> {escape(how_to_read)}</p>" if how_to_read else ""
    kinds = " \N{MIDDLE DOT} ".join(
        f'<a href="{escape(files)}/{escape(figure.name)}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png", "pdf")
    )
    links = f" <span>{kinds}</span>" if files else ""
    header, rows = figure.table()
    cut = f"The first {MOST_ROWS} of {len(rows)}; all are in the folder's records." if len(rows) > MOST_ROWS else ""
    numbers = _table(Table(header, rows[:MOST_ROWS], cut))
    return (
        f"<figure>\n{_legend(figure, _identity(number, figure))}"
        f'<div class="chart" id="{_identity(number, figure)}" role="img" tabindex="0" '
        f'aria-label="{escape(figure.label)} Arrow keys step through the points."></div>\n'
        f'<figcaption><p class="count">Figure {number}{links}</p>{reading}</figcaption>\n'
        f"<details><summary>The numbers of figure {number}</summary>{numbers}</details></figure>\n"
    )


def _legend(figure: Figure, identity: str) -> str:
    if len(figure.series) < 2:
        return ""
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-figure="{identity}" data-series="{escape(one_line(name))}">'
        f'<span class="swatch" aria-hidden="true" style="--light:{look.ink.light};--dark:{look.ink.dark}">'
        f"{GLYPHS[look.shape]}</span>{escape(figure.labels.get(name, name))}</button></li>"
        for name, look in figure.series.items()
    )
    return f'<ul class="legend" aria-label="Show or hide lines">{buttons}</ul>\n'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    wide = len(table.header) > 3  # on a phone each of its rows is a card, where cells have their names beside them
    cells = [f'<td data-label="{escape(cell)}">' if wide else "<td>" for cell in table.header]
    rows = "".join(
        "<tr>" + "".join(f"{cell}{escape(value)}</td>" for cell, value in zip(cells, row, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    label, kind = escape(table.caption or " ".join(table.header)), ' class="wide-table"' if wide else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {label}"><table{kind}>{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def split(table: Table) -> tuple[Table, Table]:
    """Part a table of what was applied: the values that differ from 1, and the rest to unfold."""
    ones = [row for row in table.rows if row[1 + table.header.index("name")] == "1"]
    caption = f"{len(ones)} more values that are 1"
    return Table(table.header, [row for row in table.rows if row not in ones]), Table(table.header, ones, caption)


def provenance(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Flatten a provenance record to rows of (dotted name, value).

    >>> provenance({"data": {"source": "text"}, "seeds": [0, 1]})
    [('data.source', 'text'), ('seeds', '0, 1')]
    """
    return [(name, plainly(value)) for name, value in flat(record).items()]


def plainly(value: Any) -> str:
    """Write a value of a record as text."""
    if isinstance(value, list):
        return ", ".join(map(plainly, value))
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
