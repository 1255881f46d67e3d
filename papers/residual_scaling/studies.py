"""All studies by name, and their records: records/paper/NAME.json, written when a study has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import carried
import compare
import eight
import gap
import initial
import kept
import late
import limits
import recorded
import torch
import untied
from outcome import Outcome, Table

from loopscale.files import write_json
from loopscale.train import provenance

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "records" / "paper"
PREDICTIONS: dict[int, Callable[[], Outcome]] = dict(
    sorted(
        {**initial.STUDIES, **recorded.STUDIES, **gap.STUDIES, **carried.STUDIES, **late.STUDIES}.items(),
    )
)
# Beyond the predictions: each gives a table.
TABLES: dict[str, Callable[[], Table]] = {
    "limits": limits.table,
    "rules": compare.table,
    "layers": carried.layers,
    "layers-again": carried.layers_again,
    "width": carried.widths,
    "eight": eight.table,
    "untied": untied.table,
}
STUDIES: dict[str, Callable[[], Outcome | Table]] = {
    **{f"{number:02d}": study for number, study in PREDICTIONS.items()},
    **TABLES,
}
LONG = ("rules", "layers", "layers-again", "width", "eight", "untied")  # run only by name: together they take longest
SHARED = {"13": "gap", "15": "gap", "layers": "11"}  # folders of trials that two studies read


def record(name: str) -> Path:
    """Where the record of a study lies."""
    return RECORDS / f"{name}.json"


def forget(names: list[str]) -> None:
    """Let these studies train anew, where they had ended."""
    for folder in {SHARED.get(name, name) for name in names}:
        kept.forget(folder)


def record_of_folder(name: str) -> str:
    """The study to whose account the trials go that two studies share: the first of them."""
    folder = SHARED.get(name, name)
    return min(other for other in STUDIES if SHARED.get(other, other) == folder)


def run(name: str) -> dict[str, Any]:
    """Run one study and keep its record."""
    torch.set_num_threads(1)
    folder, began = SHARED.get(name, name), time.process_time()
    before = 0.0 if record_of_folder(name) == name else kept.processor_seconds(folder)
    found = STUDIES[name]()
    seconds = round(time.process_time() - began + kept.processor_seconds(folder) - before, 1)
    result = {**found.to_json(), "provenance": {**provenance(), "processor_seconds": seconds}}
    write_json(record(name), result)
    kept.ended(folder)
    return result
