"""The documentation site: `python -m sphinx -W -b html docs build/docs`. Nothing is fetched when a page is viewed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])

sys.path[:0] = [str(ROOT / "docs" / "playground"), str(ROOT / "docs")]
import build as playground  # noqa: E402
import extras  # noqa: E402

import loopscale  # noqa: E402

playground.build(ROOT / "build" / "playground")
extras.write(ROOT / "build" / "playground")

project = "loopscale"
author = "The loopscale authors"
project_copyright = "The loopscale authors, Apache 2.0"
release = loopscale.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"loopscale {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../build/playground"]
html_copy_source = False
html_show_sourcelink = False
# Furo's accent passes AA on both backgrounds with these.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0a5f5b", "color-brand-content": "#0a5f5b"},
    "dark_css_variables": {"color-brand-primary": "#5fd6cc", "color-brand-content": "#5fd6cc"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

nb_execution_mode = "force"
nb_merge_streams = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_ipywidgets_js: dict[str, Any] = {}  # myst-nb would load them from a CDN
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
suppress_warnings = ["myst.header", "toc.duplicate_entry"]

# Pages link to files beside the site (records, examples): there they become plain words, on a code host they stay links.
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")


def plain_links(app: Any, name: str, source: list[str]) -> None:
    """Replace links that leave the site by the path in words."""
    folder = (ROOT / "docs" / name).parent

    def said(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        shown = target.relative_to(ROOT) if target.is_relative_to(ROOT) else match[2]
        text = match[1].strip("`")
        return f"`{shown}` of the repository" if text in str(shown) else f"{match[1]} (`{shown}` of the repository)"

    source[0] = OUTSIDE.sub(said, source[0])
    if "```{code-cell}" in source[0]:  # an executed chapter can be taken along
        up = "../" * name.count("/")
        link = f'<a href="{up}notebooks/{name.rpartition("/")[2]}.ipynb" download>This chapter as a notebook</a>'
        source[0] = re.sub(r"^(# .+\n)", lambda head: f"{head[1]}\n{link}\n", source[0], count=1, flags=re.M)


CELL = re.compile(r"<td([^>]*)>(\s*(?:<p>\s*</p>\s*)?</td>)?")


def labelled_cells(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Cells of wide tables carry their column's name: on a phone a row is a card (site.css), and nothing is cut off."""

    def labelled(match: re.Match[str]) -> str:
        names = [re.sub(r"<[^>]+>", "", head) for head in re.findall(r"<th[^>]*>(.*?)</th>", match[0], flags=re.S)]
        if len(names) < 4:
            return match[0]
        rows = re.split(r"(?=<tr)", match[0])
        for i, row in enumerate(rows):
            rows[i] = CELL.sub(partial(named_cell, iter(names)), row)
        text = "".join(rows).replace("<tr", '<tr role="row"').replace("<th ", '<th role="columnheader" ')
        return text.replace('<table class="', '<table role="table" class="wide ', 1)

    if "body" in context:
        context["body"] = re.sub(r"<table.*?</table>", labelled, context["body"], flags=re.S)


def named_cell(names: Iterator[str], cell: re.Match[str]) -> str:
    """The start of a cell with its column's name; an empty cell as a whole."""
    return f'<td{cell[1]} role="cell" data-label="{next(names, "").strip()}">' + ("</td>" if cell[2] else "")


def plain_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `names`: escape what reST would read into them, keep shapes and examples."""
    made: list[str] = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        rows = paragraph.strip("\n").split("\n")
        if rows[0].lstrip().startswith(">>>"):
            made += rows
        elif any(row.startswith((" ", "|")) for row in rows):
            made += ["::", "", *("   " + row for row in rows)]
        else:
            made += [escaped(row) for row in rows]
        made.append("")
    lines[:] = made


def escaped(row: str) -> str:
    """`name` in literal type; nothing else has a meaning."""
    parts = row.split("`")
    plain = [re.sub(r"([*|_\\])", r"\\\1", part) if i % 2 == 0 else f"``{part}``" for i, part in enumerate(parts)]
    text = "".join(part for part in plain if part != "````")
    text = re.sub(r"\\\*(\w[\w ]*)\\\*", r"*\1*", text)  # emphasis stays
    return re.sub(r"^(\s*)([-+>]|\d+[.)])(\s)", r"\1\\\2\3", text).replace("::", ":\\ :")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", plain_links)
    app.connect("html-page-context", labelled_cells)
    app.connect("autodoc-process-docstring", plain_docstring)
