"""docs/blocks.md: every block of code runs, and every file it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "blocks.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_runs_and_prints_what_it_shows(block, capsys):
    exec(compile(block, "docs/blocks.md", "exec"), {"__name__": "document"})
    said = capsys.readouterr().out
    for shown in re.findall(r"^ *print\(.*\)  # (.*)$", block, flags=re.M):
        assert shown in said


def test_what_it_names_exists():
    assert len(BLOCKS) >= 7
    paths = set(re.findall(r"examples/[\w/]+\.py", TEXT))
    assert len(paths) >= 7
    assert all((ROOT / path).exists() for path in paths)
