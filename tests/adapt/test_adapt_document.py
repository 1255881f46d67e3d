"""docs/adapt.md: its blocks run in order, its tables are those of the records."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "adapt.md").read_text()


def test_its_blocks_run(capsys):
    pytest.importorskip("transformers")
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) == 3
    space: dict[str, object] = {"__name__": "document"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(compile(block, "docs/adapt.md", "exec"), space)
    shown = re.search(r"```text\n(Model: .*?)```", TEXT, flags=re.S)
    assert shown is not None and shown.group(1) in capsys.readouterr().out


def test_it_shows_at_least_35_architectures():
    rows = re.search(r"<!-- records:architectures -->\n(.*?)<!--", TEXT, flags=re.S)
    assert rows is not None and rows.group(1).count("\n| ") >= 35


def test_links_lead_somewhere():
    for path in re.findall(r"\]\(([\w/.-]+)\)", TEXT):
        assert (ROOT / "docs" / path).exists(), path
