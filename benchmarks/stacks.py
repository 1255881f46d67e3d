"""Claim: on a GPU, 16 small trials at once have at least 4 times the throughput of one after another. On a CPU: what it is.

python benchmarks/stacks.py [--device cuda] [--pairs 3] [--out records/stacks.json]

steps      trials a second of K = 1, 4, 16, 64 in a stack over one after another, in one process with one thread, pair by
           pair: CPU seconds on a CPU, the wall on a GPU
at work    the same with a process on each core at work, trials in stacks over trials alone: what `--executor auto`
           measures, and so what it takes
walls      wall time of the same 16 trials, starting the processes included: one process, a process a core, stacks in them

Sizes: d = 32 on short and on whole sequences, the proxy that `loopscale tune` cuts from the default config, and the widest
one that it cuts from a large config.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paired import ratio, rounds

from loopscale.batched import house_stack
from loopscale.data import Dataset
from loopscale.files import write_json
from loopscale.study import Batched, Executor, LocalProcesses, content_hash, drive
from loopscale.study.executor import Job
from loopscale.study.fastest import MARGIN, measured
from loopscale.train import TrainConfig, make_config, provenance
from loopscale.train.loop import train_step
from loopscale.train.training import prepare

SIZES = {  # name: width, head_dim, layers, context, batch
    "d = 32, T = 16": (32, 16, 1, 16, 4),
    "d = 32, T = 64": (32, 32, 1, 64, 16),
    "proxy of the default config": (64, 32, 1, 64, 16),
    "widest proxy": (128, 32, 2, 64, 16),
}
AT_ONCE, TRIAL_STEPS, TRIALS, STEPS = (1, 4, 16, 64), 64, 16, 300


def config(size: str, device: str, seed: int, steps: int = STEPS) -> TrainConfig:
    width, head_dim, layers, context, batch = SIZES[size]
    return make_config(
        {
            "model": {"width": width, "head_dim": head_dim, "layers": layers, "loops": 1, "base_layers": layers},
            "data": {"path": "stdlib", "context": context, "batch_size": batch},
            "optim": {"lr": 2.0 ** (-9 + seed % 4)},
            "train": {"steps": steps, "eval_batches": 8, "seed": seed, "device": device},
        }
    )


def alone(size: str, device: str, data: Dataset) -> Callable[[], None]:
    training = prepare(config(size, device, 0, 10**6), data)

    def some() -> None:
        for _ in range(TRIAL_STEPS):
            train_step(training)

    return some


def together(size: str, device: str, data: Dataset, count: int) -> Callable[[], None]:
    stack = house_stack([config(size, device, seed, 10**6) for seed in range(count)], data)

    def some() -> None:
        for _ in range(TRIAL_STEPS // count):
            stack.step()

    return some


def steps(size: str, device: str, pairs: int) -> dict[str, Any]:
    """Per K: throughput of the stack over one after another; or that K does not fit the memory."""
    data, found = config(size, device, 0).load_data(), {}
    for count in AT_ONCE:
        try:
            actions = {"alone": alone(size, device, data), "together": together(size, device, data, count)}
            seconds = rounds(actions, pairs, device, warm=1)
        except torch.OutOfMemoryError:
            found[str(count)] = "does not fit the memory"
            continue
        found[str(count)] = ratio(seconds["alone"], seconds["together"])
        found[str(count)]["trial_steps_per_second"] = round(TRIAL_STEPS / statistics.median(seconds["together"]), 1)
    return found


def wall(executor: Executor, size: str, device: str) -> float:
    jobs: list[Job] = []
    for seed in range(TRIALS):
        values = config(size, device, seed).model_dump(mode="json")
        jobs.append((content_hash(values), {"seed": seed}, values))
    began, left = time.perf_counter(), iter(jobs)
    drive(executor, lambda: next(left, None), lambda record: None)
    return time.perf_counter() - began


def at_work(size: str, device: str, pairs: int) -> dict[str, Any]:
    """Throughput of stacks over processes, on all cores, and what `auto` takes by the median."""
    values = config(size, device, 0).model_dump(mode="json")
    found = [measured(values, LocalProcesses().slots, Batched()) for _ in range(pairs)]
    rates = [rate for _, rate in found if not isinstance(rate, str)]
    record = ratio([stacks for _, stacks in rates], [processes for processes, _ in rates])
    return {**record, "size": found[0][0], "auto": "stacks" if record["ratio_median"] > MARGIN else "processes"}


def walls(size: str, device: str, rounds: int) -> dict[str, Any]:
    """Throughput of each way over one process."""
    kinds: dict[str, Callable[[], Executor]] = {
        "one process": lambda: LocalProcesses(1),
        "processes": LocalProcesses,
        "stacks": lambda: Batched(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, make in kinds.items():
            seconds[name].append(wall(make(), size, device))
    over = {name: ratio(seconds["one process"], row) for name, row in seconds.items() if name != "one process"}
    return {"over_one_process": over, "seconds": {name: [round(s, 2) for s in row] for name, row in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--walls", type=int, default=2, help="rounds of the walls, at the first size; 0 leaves them out"
    )
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        row = {"size": size, "steps": steps(size, options.device, options.pairs)}
        rows.append({**row, "at_work": at_work(size, options.device, options.pairs)})
        keep(options, rows)
    if options.walls:
        rows[0]["walls"] = walls(rows[0]["size"], options.device, options.walls)
        keep(options, rows)


def keep(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the last row, and write what is known so far."""
    print(rows[-1], flush=True)
    record = {
        "claim": f"trials a second, 16 in a stack / one after another, {rows[0]['size']}, {options.device}",
        **{key: rows[0]["steps"]["16"][key] for key in ("ratio_median", "ratio_range", "pairs")},
        "device": options.device,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "rows": rows,
        "provenance": provenance(),
    }
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
