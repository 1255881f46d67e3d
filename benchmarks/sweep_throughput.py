"""Claim: two cores give a study at least 1.7 times the throughput of one.

python benchmarks/sweep_throughput.py [--out records/sweep_throughput.json]

The same trials run with one worker and with two, in turn; the ratio of wall times (starting the workers included) is
taken pair by pair, the median quoted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict
from pathlib import Path

from loopscale.files import write_json
from loopscale.study import LocalProcesses, drive
from loopscale.train import provenance
from loopscale.transfer import Arm, Cell, StudyPlan, get_preset


def jobs(count: int) -> list[tuple[str, dict, dict]]:
    plan = StudyPlan(base=get_preset("demo").base(["train.steps=60"]), loops=(4,), seeds=count)
    cells = [Cell(Arm("looped", 1.0, 4), 2.0**-6, seed) for seed in range(count)]
    return [
        (
            plan.key(cell),
            {**asdict(cell.arm), "lr": cell.lr, "seed": cell.seed},
            plan.config(cell).model_dump(mode="json"),
        )
        for cell in cells
    ]


def seconds(workers: int, count: int) -> float:
    left = iter(jobs(count))
    began = time.perf_counter()
    drive(LocalProcesses(workers), lambda: next(left, None), lambda record: None)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    get_preset("demo").base().load_data()
    pairs = [(seconds(1, options.trials), seconds(2, options.trials)) for _ in range(options.pairs)]
    ratios = sorted(one / two for one, two in pairs)
    record = {
        "claim": "study throughput of two workers / one worker",
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "pairs": [[round(one, 2), round(two, 2)] for one, two in pairs],
        "trials": options.trials,
        "provenance": provenance(),
    }
    print(f"ratio {record['ratio_median']} (range {record['ratio_range']})")
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
