"""Measure what a study costs besides its trials: CPU of the driver per trial, and resuming, over the number of trials.

The objective returns at once, so all that is left is asking, submitting, keeping and indexing.
`python benchmarks/driver.py` writes records/driver.json.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from loopscale.study import LocalProcesses, UserCode
from loopscale.train import make_config, provenance
from loopscale.transfer import Study, StudyPlan, run_study

PLACE = f"{Path(__file__).resolve()}:objective"


def objective(values: dict[str, Any]) -> float:
    """A valley, at once."""
    return 2 + 0.05 * (math.log2(values["lr"]) + 6) ** 2 + 0.001 * values["seed"]


def plan(trials: int) -> StudyPlan:
    """About so many trials: 2 rules x 5 numbers of loops x 10 rates x seeds."""
    rates = tuple(2.0 ** (-9 + k / 2) for k in range(10))
    code = UserCode.at(PLACE, "objective")
    return StudyPlan(
        make_config({}), ("looped", "none"), (1, 2, 4, 8, 16), rates, seeds=max(1, trials // 100), user_code=code
    )


def measured(trials: int, workers: int) -> dict[str, Any]:
    """Run a study of so many trials, then open its folder again."""
    with tempfile.TemporaryDirectory() as place:
        folder, chosen = Path(place) / "s", plan(trials)
        cpu, wall = time.process_time(), time.perf_counter()
        run_study(chosen, folder, executor=LocalProcesses(workers))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        began, resumed = time.perf_counter(), time.process_time()
        count = len(Study.load(folder).trials)
        resume, resumed = time.perf_counter() - began, time.process_time() - resumed
        size = (folder / "trials.jsonl").stat().st_size
    return {
        "trials": count,
        "driver_ms_per_trial": round(1000 * cpu / count, 3),
        "wall_ms_per_trial": round(1000 * wall / count, 3),
        "resume_seconds": round(resume, 3),
        "resume_cpu_seconds": round(resumed, 3),
        "journal_bytes_per_trial": round(size / count),
    }


def main() -> None:
    """Measure each count and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("records/driver.json"))
    options = parser.parse_args()
    measured(100, options.workers)  # the first study of a process pays for what is loaded lazily
    rows = [measured(trials, options.workers) for trials in options.trials]
    options.out.write_text(json.dumps({"rows": rows, "provenance": provenance()}, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
