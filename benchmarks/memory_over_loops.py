"""Claim: with recomputation under a limit on kept streams, the activation memory of a step does not grow with N.

python benchmarks/memory_over_loops.py [--out records/memory_over_loops.json]          Linux

Two measures of the second forward and backward pass, each in a process of its own: the most bytes that live tensors hold
at a time (what a GPU's allocator would report as its peak), and peak resident memory above that before the pass. The first
pass grows the process once and for all (stacks, Python's own memory), so it does not count. Gradients, constant over N, are
in both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

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
    import time

    def step() -> None:
        model(tokens).square().mean().backward()
        model.zero_grad()

    step()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.process_time()
    step()
    seconds, grown = time.process_time() - began, resident("VmHWM") - before
    print(json.dumps({"mb": _alive(step) / 1e6, "resident_mb": grown / 1e6, "cpu_seconds": seconds}))


def _alive(step: Callable[[], None]) -> int:
    """The most bytes that tensors made during `step` hold at a time."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        held: ClassVar[dict[int, int]] = {}
        peak = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if hasattr(tensor, "untyped_storage"):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in self.held:
                        self.held[storage._cdata] = storage.nbytes()
                        weakref.finalize(storage, self.held.pop, storage._cdata, None)
            Watch.peak = max(self.peak, sum(self.held.values()))
            return result

    with Watch():
        step()
    return Watch.peak


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
    from loopscale.files import write_json
    from loopscale.train import provenance

    rows: dict[str, dict[str, dict[str, float]]] = {}
    for mode in MODES:
        for loops in LOOPS:
            sizes = ["--width", str(shape[0]), "--batch", str(shape[1]), "--context", str(shape[2])]
            command = [sys.executable, __file__, "--one", str(loops), mode, *sizes]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **EXACT})
            found = json.loads(done.stdout)
            rows.setdefault(mode, {})[str(loops)] = {key: round(value, 2) for key, value in found.items()}
        print(mode, {n: (row["mb"], row["resident_mb"]) for n, row in rows[mode].items()}, flush=True)
    flat = rows["at most 4 streams kept"]
    record = {
        "claim": "activation memory with at most 4 streams kept, N = 64 / N = 4",
        "ratio_median": round(flat["64"]["mb"] / flat["4"]["mb"], 3),
        "ratio_range": [round(flat["64"]["mb"] / flat["4"]["mb"], 3)] * 2,
        "pairs": 1,
        "resident_ratio": round(flat["64"]["resident_mb"] / flat["4"]["resident_mb"], 3),
        "shape": {"width": shape[0], "layers": 2, "batch": shape[1], "context": shape[2]},
        "rows": rows,
        "provenance": provenance(),
    }
    print(record["claim"], record["ratio_median"])
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
