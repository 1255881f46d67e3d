"""Claim: the first compiled step at N = 64 costs about that at N = 4: one graph serves every N.

python benchmarks/compile_time.py [--out records/compile_time.json]      needs a C++ compiler

Each N in a process of its own with an empty Inductor cache; the first step includes tracing and compilation. `at_once` is
a later step, of which N = 64 has sixteen times as much as N = 4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def one(loops: int) -> None:
    import torch
    from paired import train_step

    from loopscale import LoopedTransformer, ModelConfig

    torch.set_num_threads(1)
    model = LoopedTransformer(ModelConfig(vocab_size=256, width=128, layers=2, loops=loops))
    model.core.compile_body()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(3):
        before, children = time.process_time(), os.times()
        train_step(model, optimizer, tokens)
        after = os.times()
        compilers = after.children_user + after.children_system - children.children_user - children.children_system
        seconds.append(time.process_time() - before + compilers)
    print(json.dumps({"first": seconds[0], "at_once": seconds[-1]}))


def first_steps(loops: list[int]) -> dict[str, dict[str, float]]:
    """Seconds of the first and of a later step at each N, each N in a process with an empty cache."""
    rows = {}
    for n in loops:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            command = [sys.executable, __file__, "--one", str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        rows[str(n)] = json.loads(done.stdout)
        print(n, rows[str(n)], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--loops", type=int, nargs=2, default=[4, 64])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--one", type=int)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    from paired import ratio

    from loopscale.files import write_json
    from loopscale.train import provenance

    few, many = map(str, options.loops)
    pairs = [first_steps(options.loops) for _ in range(options.pairs)]
    record = {
        "claim": f"first compiled step, N = {many} / N = {few}",
        **ratio([rows[many]["first"] for rows in pairs], [rows[few]["first"] for rows in pairs]),
        "clock": "CPU seconds, compilers included",
        "rows": pairs,
        "provenance": provenance(),
    }
    print(record["claim"], record["ratio_median"])
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
