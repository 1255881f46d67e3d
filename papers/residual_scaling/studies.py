"""All studies by number, and their records: records/paper/NN.json, written when a study has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import initial
import recorded
import torch
import trained
from outcome import Outcome

from loopscale.atomic import write_json
from loopscale.train import provenance

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "records" / "paper"
STUDIES: dict[int, Callable[[], Outcome]] = dict(
    sorted({**initial.STUDIES, **recorded.STUDIES, **trained.STUDIES}.items())
)


def record(number: int) -> Path:
    """Where the record of a prediction lies."""
    return RECORDS / f"{number:02d}.json"


def run(number: int) -> dict[str, Any]:
    """Run one study and keep its record."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    outcome = STUDIES[number]()
    seconds = round(time.perf_counter() - began, 1)
    result = {**outcome.to_json(), "provenance": {**provenance(), "seconds": seconds}}
    write_json(record(number), result)
    return result
