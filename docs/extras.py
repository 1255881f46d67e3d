"""What the site has beside its pages: each executed chapter as a notebook, and llms.txt, the map for language models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL = re.compile(r"```\{code-cell\}[^\n]*\n(.*?)```\n?", re.S)


def chapters() -> list[Path]:
    """List the pages that are executed."""
    return sorted(page for page in DOCS.glob("**/*.md") if "```{code-cell}" in page.read_text(encoding="utf-8"))


def notebook(page: Path) -> dict[str, Any]:
    """Turn an executed page into a notebook: text between the cells, and the cells."""
    text = page.read_text(encoding="utf-8").partition("---\n")[2].partition("---\n")[2]
    cells = []
    for i, part in enumerate(CELL.split(text)):
        source = _links(part).strip("\n") if i % 2 == 0 else part.rstrip("\n")
        if not source.strip():
            continue
        cell = {"cell_type": "code" if i % 2 else "markdown", "id": f"cell{i}", "metadata": {}, "source": source}
        cells.append({**cell, "outputs": [], "execution_count": None} if i % 2 else cell)
    return {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def _links(text: str) -> str:
    """Links to other pages as plain words: in a downloaded notebook they lead nowhere."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def title_of(text: str) -> str:
    """Give the first heading of a page."""
    found = re.search(r"^# (.+)$", text, flags=re.M)
    return found[1] if found else ""


def first_sentence(text: str) -> str:
    """Give the first sentence of the first paragraph (or item of a list) below the heading."""
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.S)
    for part in (f"\n{prose}").partition("\n# ")[2].split("\n\n")[1:]:
        part = part.strip()
        if part and part[0] not in "#|<!>":
            plain = _links(" ".join(part.split("\n- ")[0].split())).replace("**", "").removeprefix("- ")
            plain = re.sub(r"^(Promise|The number)\. ", "", plain)
            return re.split(r"(?<=\.) ", plain)[0]
    return ""


def llms() -> str:
    """Write llms.txt: what the package is, and each page with its first sentence."""
    lines = [
        "# loopscale",
        "",
        "> Python library and command line for training looped (weight-tied, recurrent-depth) Transformers: every residual "
        "branch is scaled by eps = lambda / (N sqrt(L)) for N loops of L layers, so that a rate tuned at few holds.",
        "",
        "- `pip install loopscale`; `import loopscale as ls`; `loopscale explain WORD` (a command, function, symptom, ...)",
        "- On a model of your own: `loopscale diagnose FILE.py:make_model`, `transfer`, `tune --model`, `train --model`",
    ]
    trees = re.findall(
        r"```\{toctree\}\n:caption: ([^\n]+)\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.S
    )
    for caption, tree in trees:  # in the order of the site's own menu
        lines += ["", f"## {caption}", ""]
        for place in filter(None, (line for line in tree.split("\n") if not line.startswith(":"))):
            text = (DOCS / f"{place}.md").read_text(encoding="utf-8")
            lines.append(f"- [{title_of(text)}]({place}.html): {first_sentence(text)}")
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """Write the notebooks and llms.txt into a folder that the site copies."""
    place = folder / "notebooks"
    place.mkdir(parents=True, exist_ok=True)
    for page in chapters():
        text = json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"
        (place / f"{page.stem}.ipynb").write_text(text, encoding="utf-8")
    (folder / "llms.txt").write_text(llms(), encoding="utf-8")
