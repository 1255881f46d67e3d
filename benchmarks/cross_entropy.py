"""Claim: the loss in chunks takes no more time than that of whole logits, and a fraction of the memory.

python benchmarks/cross_entropy.py [--out records/cross_entropy.json]          Linux

Readout and cross entropy alone, forward and backward, over the vocabulary. Ways: whole logits; `chunked_cross_entropy`
(what `train.loss_rows` uses); the same kernel with the chunks it chooses itself; chunks made by checkpointing. Memory:
peak resident memory above that before the step, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from memory_over_loops import EXACT, resident
from paired import ratio, rounds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from loopscale.nn import chunked_cross_entropy

ROWS = 256
SHAPES = ((256, 512, 256), (8192, 1024, 256), (32768, 1024, 256), (50304, 1024, 512))  # V, positions, D


def whole(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), targets)


def checkpointed(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    def part(a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(a, weight), b, reduction="sum")

    pairs = zip(x.split(ROWS), targets.split(ROWS), strict=True)
    parts = [checkpoint(part, a, b, use_reentrant=False, preserve_rng_state=False) for a, b in pairs]
    return torch.stack(parts).sum() / len(targets)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "whole logits": whole,
    f"{ROWS} rows at a time": lambda x, w, t: chunked_cross_entropy(x, w, t, ROWS),
    "torch's own choice of rows": lambda x, w, t: F.linear_cross_entropy(
        x, w, t, options=nn.LinearCrossEntropyOptions()
    ),
    f"{ROWS} rows, checkpointed": checkpointed,
}


def inputs(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary, positions, width = shape
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, width).mul_(width**-0.5)
    return (
        torch.randn(positions, width, requires_grad=True),
        weight.requires_grad_(),
        torch.randint(0, vocabulary, (positions,)),
    )


def step(way: str, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    WAYS[way](*tensors).backward()
    tensors[0].grad = tensors[1].grad = None


def megabytes(way: str, shape: tuple[int, int, int]) -> float:
    """Peak of the second step in a process of its own; the gradients are in it."""
    command = [sys.executable, __file__, "--one", way, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **EXACT})
    return float(json.loads(done.stdout))


def one(way: str, shape: tuple[int, int, int]) -> None:
    tensors = inputs(shape)
    step(way, tensors)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(way, tensors)
    print((resident("VmHWM") - before) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "V", "POSITIONS", "D"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        way, *shape = options.one
        one(way, tuple(map(int, shape)))
        return
    from loopscale.files import write_json
    from loopscale.train import provenance

    rows = []
    for shape in SHAPES:
        tensors = inputs(shape)
        seconds = rounds({way: partial(step, way, tensors) for way in WAYS}, options.pairs)
        first = seconds["whole logits"]
        memory = {way: megabytes(way, shape) for way in WAYS}
        row = {
            "vocabulary": shape[0],
            "positions": shape[1],
            "width": shape[2],
            "seconds_whole": round(statistics.median(first), 4),
            "time_ratio": {way: ratio(times, first)["ratio_median"] for way, times in seconds.items()},
            "memory_ratio": {way: round(mb / memory["whole logits"], 3) for way, mb in memory.items()},
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    kept = f"{ROWS} rows at a time"
    large = rows[-2]
    record = {
        "claim": f"loss {kept} / whole logits, V = {large['vocabulary']}: time (memory: {large['memory_ratio'][kept]})",
        **{"ratio_median": large["time_ratio"][kept], "ratio_range": [large["time_ratio"][kept]] * 2},
        "pairs": options.pairs,
        "clock": "CPU seconds of one thread",
        "rows": rows,
        "provenance": provenance(),
    }
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
