"""docs/diagnosis.md is true: its code runs, and its tables name every field and code of the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loopscale.diagnosis import diagnosis_schema

TEXT = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_run(block):
    exec(compile(block, "docs/diagnosis.md", "exec"), {"__name__": "document"})


def test_the_first_block_prints_what_is_shown(capsys):
    (shown,) = re.findall(r"```text\n(.*?)```", TEXT, flags=re.S)
    exec(compile(BLOCKS[0], "docs/diagnosis.md", "exec"), {"__name__": "document"})
    printed = capsys.readouterr().out
    assert words(printed) == words(shown) and decimals(printed) == pytest.approx(decimals(shown), rel=0.02, abs=0.006)


def words(text: str) -> list[str]:
    """Lines without decimals, which differ between machines, and without a note on how sure the spectrum is."""
    return [re.sub(r"\d+\.\d+", "#", line).removesuffix(" (lower estimates)") for line in text.strip().splitlines()]


def decimals(text: str) -> list[float]:
    """Return the decimals, without the spectrum's."""
    lines = [line for line in text.splitlines() if not line.startswith("loop map")]
    return [float(found) for found in re.findall(r"\d+\.\d+", "\n".join(lines))]


def test_every_code_and_field_is_explained():
    schema = diagnosis_schema()["properties"]
    for code in schema["findings"]["items"]["properties"]["code"]["enum"]:
        assert f"| `{code}` |" in TEXT
    for field in set(schema) - {"schema", "findings", "verdict", "details", "loops_argument"}:
        assert f"`{field}`" in TEXT
