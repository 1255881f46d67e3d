"""The held-out models of which the record says the right findings: they are still said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from loopscale.diagnosis import diagnose

sys.path.insert(0, str(Path(__file__).parent))
from heldout.measure import modules

RECORD = json.loads((Path(__file__).parents[2] / "records" / "diagnosis_heldout.json").read_text())["batches"]
QUICK = {"reasoners:restart", "assorted:not_a_number", "adapters:copies", "graph:residual", "recurrences:linear"}
LATEST = {
    (batch, row["case"]): row
    for batch, sights in RECORD.items()
    for sight in ("first", "now")
    for row in sights.get(sight, {"cases": []})["cases"]
}


def cases():
    for key, row in LATEST.items():
        if {"codes", "crash", "timeout"} & set(row.get("wrong_corrected", row["wrong"])):
            continue
        marks = [] if key[1] in QUICK else [pytest.mark.slow]
        yield pytest.param(*key, marks=marks, id=f"{key[0]}-{key[1]}")


def factory(batch, case):
    name, _, made = case.partition(":")
    return next(getattr(module, made) for path, module in modules(batch) if path.stem == name)


@pytest.mark.parametrize(("batch", "case"), cases())
def test_the_right_findings_are_still_said(batch, case):
    torch.manual_seed(0)
    make = factory(batch, case)
    made = make()
    found = diagnose(*(made if isinstance(made, tuple) else (made,)), factory=make)
    row = LATEST[batch, case]
    assert sorted(found.codes) == row["said"], (found.text(), row["verdict"])


def test_every_truth_stands_in_the_record_as_it_was_stated():
    for batch in RECORD:
        stated = {
            f"{path.stem}:{name}": truth for path, module in modules(batch) for name, truth in module.TRUTHS.items()
        }
        told = {row["case"]: row["truth"] for row in RECORD[batch]["first"]["cases"]}
        assert set(told) == set(stated)
        assert all(value == stated[case][key] for case, row in told.items() for key, value in row.items())
