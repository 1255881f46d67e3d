"""attach on the architectures of transformers: a sample each time, all of them in the slow suite and the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapt_architectures import MODELS
from adapt_examine import examine, holds

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "records" / "attach_architectures.json"
SAMPLE = ("Gemma 3", "Bloom", "T5", "ALBERT", "Mamba 2")
FIXED = ("class", "branches", "found_by", "post_norm", "trace_agrees", "scale_1", "strength_0", "detach")


def recorded():
    return {row["architecture"]: row for row in json.loads(RECORD.read_text())["rows"]}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_holds_every_law(name):
    row = examine(name, "eager")
    assert holds(row), row
    assert {key: row[key] for key in FIXED} == {key: recorded()[name][key] for key in FIXED}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODELS) - set(SAMPLE)))
def test_every_architecture_holds_every_law(name):
    row = examine(name, "inductor")
    assert holds(row), row
    assert {key: row[key] for key in FIXED} == {key: recorded()[name][key] for key in FIXED}


def test_the_record_covers_every_architecture_and_none_fails():
    rows = recorded()
    assert set(rows) == set(MODELS) and len(rows) >= 35
    assert all(holds(row) for row in rows.values())


def test_a_row_that_breaks_a_law_does_not_hold():
    row = recorded()["Llama"]
    broken = dict(
        scale_1=False, detach=False, strength_0=False, compiled_difference=0.1, graphs_made_by_changing_loops=1
    )
    assert not any(holds({**row, key: value}) for key, value in broken.items())
