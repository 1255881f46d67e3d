"""The documentation: every code block runs; the site builds strictly, asks no network, and has no broken link."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(page for page in DOCS.glob("**/*.md") if "```{code-cell}" in page.read_text())
PLAIN = sorted(page for page in (DOCS / "reference").glob("*.md") if "```python" in page.read_text())
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{index}")
    for page in PLAIN
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S))
]


def test_there_are_chapters_a_lesson_and_blocks():
    names = {page.stem for page in NOTEBOOKS}
    assert names == {"start", "add-up", "rule", "transfer", "diagnosis", "blocks", "exponent", "what-goes-wrong"}
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs(page, monkeypatch):
    cells = re.findall(r"```\{code-cell\}\n(.*?)```", page.read_text(), flags=re.S)
    monkeypatch.chdir(page.parent)
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(cell, page.name, "exec"), names)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs(block):
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("name", ["add-up", "rule", "transfer", "diagnosis", "blocks", "exponent"])
def test_a_chapter_has_its_parts(name):
    text = (DOCS / "learn" / f"{name}.md").read_text()
    places = [text.index(part) for part in ("**Promise.**", "## Symbols", "> **The rule", "## Exercises", "<details>")]
    assert places == sorted(places)
    assert text.count("<details>") == text.count("</details>") >= 3


def test_the_glossary_maps_other_projects_words():
    text = (DOCS / "reference" / "glossary.md").read_text()
    for word in ("mean_recurrence", "num_recur", "n_loops", "H_cycles", "ut_steps"):
        assert word in text


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(), flags=re.M))
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.glob("**/*.md")} - {"index"}
    assert pages <= listed, sorted(pages - listed)


def test_each_chapter_is_a_notebook_and_llms_txt_names_each_page(tmp_path):
    sys.path.insert(0, str(DOCS))
    import extras

    extras.write(tmp_path)
    made = {place.stem: json.loads(place.read_text()) for place in (tmp_path / "notebooks").glob("*.ipynb")}
    assert set(made) == {page.stem for page in NOTEBOOKS}
    for page in NOTEBOOKS:
        cells = re.findall(r"```\{code-cell\}\n(.*?)```", page.read_text(), flags=re.S)
        book = made[page.stem]
        assert [c["source"] + "\n" for c in book["cells"] if c["cell_type"] == "code"] == cells
        assert book["cells"][0]["source"].startswith("# ") and "](" not in book["cells"][0]["source"]
    text = (tmp_path / "llms.txt").read_text()
    places = re.findall(r"^- \[(.+)\]\((\S+)\.html\): (.*)$", text, flags=re.M)
    assert len(places) == len(list(DOCS.glob("**/*.md"))) - 1  # without the index
    assert [place for _, place, _ in places][:2] == ["learn/start", "learn/add-up"]  # in the order of the menu
    assert all((DOCS / f"{place}.md").exists() and len(said) > 15 for _, place, said in places), places


@pytest.mark.slow
def test_the_site_builds_strictly_and_is_whole(tmp_path):
    pytest.importorskip("myst_nb")
    pytest.importorskip("furo")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", tmp_path / "trees", DOCS, site],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (site / "playground.html").exists()
    assert 'data-label="what it means for you"' in (site / "reference" / "predictions.html").read_text()
    pages = sorted(site.glob("**/*.html"))
    for page in pages:
        text = page.read_text()
        assert not re.search(r'<(script|img|iframe)[^>]*src="https?:|<link[^>]*href="https?:', text), page.name
        assert broken_links(page, text) == [], page.name
        assert weight(page, text) < 2_000_000, page.name


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links and anchors that lead nowhere."""
    lost = []
    for raw in re.findall(r'(?:href|src)="([^"]+)"', text):
        link = html.unescape(raw)
        if re.match(r"(https?|mailto|data):", link):
            continue
        place, _, anchor = link.partition("#")
        target = page if not place else (page.parent / place.partition("?")[0])
        if not target.exists():
            lost.append(link)
        elif anchor and target.suffix == ".html" and f'id="{anchor}"' not in target.read_text():
            lost.append(link)
    return lost


def weight(page: Path, text: str) -> int:
    """Bytes of a page with all that it loads."""
    loaded = {
        (page.parent / link.partition("?")[0])
        for link in re.findall(r'(?:src|href)="([^"#:]+\.(?:css|js|svg|png)[^"]*)"', text)
    }
    return len(text.encode()) + sum(path.stat().st_size for path in loaded if path.exists())
