"""Claims: making batches costs a step little, prefetched nearly nothing; what a checkpoint costs, in steps.

python benchmarks/train_overhead.py [--out records/train_overhead.json]

One training, one thread. Steps with a batch made in advance, made in the step, and made ahead by the prefetching thread
alternate, so that a change of the machine's speed hits all three; ratios are taken triple by triple.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loopscale.data import Prefetched, Preparation, prepare_data
from loopscale.files import write_json
from loopscale.train import checkpoint, make_config, provenance
from loopscale.train.loop import train_step
from loopscale.train.training import Training, prepare


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def step_ratios(training: Training, rounds: int) -> tuple[list[float], list[float], float]:
    """(made in the step / fixed batch, prefetched / fixed batch, seconds of a step)."""
    made, fixed = training.batches, training.batches(0)
    ready = Prefetched(made, 2)
    own, ahead, base = [], [], []
    for index in range(rounds + 2):
        seconds = []
        for source in (lambda step: fixed, made, ready):
            training.batches = source
            seconds.append(timed(lambda: train_step(training)))
            training.done -= 1
        training.done += 1
        if index >= 2:
            own.append(seconds[1] / seconds[0])
            ahead.append(seconds[2] / seconds[0])
            base.append(seconds[0])
    ready.close()
    training.batches = made
    return own, ahead, statistics.median(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_data("synthetic:addition", folder / "shards", Preparation(shard_tokens=500_000))
        config = make_config(
            {
                "model": {"width": 256, "layers": 2, "loops": 4},
                "data": {"path": str(folder / "shards"), "order": "epochs", "context": 128, "batch_size": 8},
                "train": {"device": "cpu", "steps": 1000},
            }
        )
        training = prepare(config)
        own, ahead, step = step_ratios(training, options.rounds)
        saves = [timed(lambda: checkpoint.save(folder / "checkpoints", training, 2)) for _ in range(5)]
        size = sum(file.stat().st_size for file in checkpoint.listed(folder / "checkpoints")[0].iterdir())
    record = {
        "claim": "a step with prefetched batches of prepared shards / with a fixed batch",
        "ratio_median": round(statistics.median(ahead), 3),
        "ratio_range": [round(min(ahead), 3), round(max(ahead), 3)],
        "pairs": options.rounds,
        "shape": {"width": 256, "layers": 2, "loops": 4, "context": 128, "batch": 8, "order": "epochs"},
        "batch_in_the_step_ratio_median": round(statistics.median(own), 3),
        "batch_in_the_step_ratio_range": [round(min(own), 3), round(max(own), 3)],
        "checkpoint_in_steps_median": round(statistics.median(saves) / step, 3),
        "checkpoint_mb": round(size / 1e6, 2),
        "step_seconds_median": round(step, 4),
        "provenance": provenance(),
    }
    print(
        f"batch in the step {record['batch_in_the_step_ratio_median']}, prefetched {record['ratio_median']}, "
        f"a checkpoint of {record['checkpoint_mb']} MB {record['checkpoint_in_steps_median']} steps"
    )
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
