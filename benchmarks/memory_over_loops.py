"""Claim: with recomputation under a limit on kept streams, the activation memory of a step does not grow with N.

python benchmarks/memory_over_loops.py [--out records/memory_over_loops.json]          Linux

Peak resident memory of a forward and backward pass above that before it, each in a process of its own; gradients, which are
constant over N, are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

# Every large block is mapped by itself, so that resident memory is what is alive, not what the allocator keeps back.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
LOOPS = (4, 16, 64)
MODES = {
    "everything kept": {},
    "every visit recomputed": {"recompute": [1, None]},
    "at most 4 streams kept": {"recompute": [1, 4]},
    "gradient through the last 4": {"gradient_visits": 4},
}


def resident(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(key)) * 1024


def one(loops: int, mode: str, width: int, batch: int, context: int) -> None:
    import torch

    from loopscale import LoopedTransformer, ModelConfig
    from loopscale.nn import Recompute

    torch.set_num_threads(1)
    values = dict(MODES[mode])
    recompute = Recompute(*values.pop("recompute", [0, None]))
    model = LoopedTransformer(ModelConfig(vocab_size=256, width=width, layers=2, loops=loops, **values))
    model.core.recompute = recompute
    tokens = torch.randint(0, 256, (batch, context), generator=torch.Generator().manual_seed(0))
    model(tokens[:1, :8], loops=1).sum().backward()  # what torch allocates once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    import time

    began = time.process_time()
    model(tokens).square().mean().backward()
    print(json.dumps({"mb": (resident("VmHWM") - before) / 1e6, "cpu_seconds": time.process_time() - began}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--one", nargs=2, metavar=("N", "MODE"))
    options = parser.parse_args()
    shape = (options.width, options.batch, options.context)
    if options.one:
        one(int(options.one[0]), options.one[1], *shape)
        return
    from loopscale.atomic import write_json
    from loopscale.train import provenance

    rows: dict[str, dict[str, dict[str, float]]] = {}
    for mode in MODES:
        for loops in LOOPS:
            sizes = ["--width", str(shape[0]), "--batch", str(shape[1]), "--context", str(shape[2])]
            command = [sys.executable, __file__, "--one", str(loops), mode, *sizes]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **EXACT})
            found = json.loads(done.stdout)
            rows.setdefault(mode, {})[str(loops)] = {key: round(value, 2) for key, value in found.items()}
        print(mode, {n: row["mb"] for n, row in rows[mode].items()}, flush=True)
    flat = rows["at most 4 streams kept"]
    record = {
        "claim": "activation memory with at most 4 streams kept, N = 64 / N = 4",
        "ratio_median": round(flat["64"]["mb"] / flat["4"]["mb"], 3),
        "ratio_range": [round(flat["64"]["mb"] / flat["4"]["mb"], 3)] * 2,
        "pairs": 1,
        "shape": {"width": shape[0], "layers": 2, "batch": shape[1], "context": shape[2]},
        "rows": rows,
        "provenance": provenance(),
    }
    print(record["claim"], record["ratio_median"])
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
