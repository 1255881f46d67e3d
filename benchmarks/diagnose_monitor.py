"""Claim: `Monitor` costs under 2 % of the step time at its default, one watched step in 50.

python benchmarks/diagnose_monitor.py [--out records/diagnose_monitor.json]

One training loop, one model: plain steps and steps that are watched alternate, A B A B ..., so that changes of
the machine's speed hit both; the ratio of processor seconds is taken pair by pair. At the default one step in 50 is
watched: the cost of a watched step is divided by 50, and that of `step()` in the other 49, timed on its own, is added.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from loopscale import LoopedTransformer, ModelConfig
from loopscale.diagnosis import Monitor
from loopscale.files import write_json
from loopscale.train import provenance

EVERY = 50


class Bench:
    """A model that trains on random tokens."""

    def __init__(self) -> None:
        self.model = LoopedTransformer(ModelConfig(vocab_size=256, width=64, layers=2, loops=8), seed=0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.tokens = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))

    def step(self) -> float:
        loss = F.cross_entropy(self.model(self.tokens)[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def timed(self, monitor: Monitor | None = None) -> float:
        began = time.process_time()
        self.step()
        if monitor is not None:
            monitor.step()
        return time.process_time() - began


def idle() -> float:
    """Seconds of one `step()` that watches nothing."""
    monitor = Monitor(torch.nn.Linear(1, 1), every=10**9)
    monitor.close()
    began = time.process_time()
    for _ in range(1000):
        monitor.step()
    return (time.process_time() - began) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    for _ in range(3):
        bench.step()
    pairs = []
    for _ in range(options.pairs):
        plain = bench.timed()
        with Monitor(bench.model, every=1) as monitor:
            pairs.append((plain, bench.timed(monitor)))
    ratios = sorted(watched / plain for plain, watched in pairs)
    median = statistics.median(plain for plain, _ in pairs)
    cost = (statistics.median(ratios) - 1) / EVERY + idle() / median
    print(f"a watched step takes {statistics.median(ratios):.3f} of a plain one: {cost:.2%} at one in {EVERY}")
    if options.out:
        record = {
            "claim": "Monitor at its default (one step in 50) costs under 2 % of the step time",
            "shape": {"width": 64, "layers": 2, "loops": 8, "context": 64, "batch": 8},
            "cost": round(cost, 5),
            "watched_over_plain": round(statistics.median(ratios), 4),
            "watched_over_plain_quartiles": [
                round(ratios[len(ratios) // 4], 4),
                round(ratios[3 * len(ratios) // 4], 4),
            ],
            "pairs": len(pairs),
            "every": EVERY,
            "clock": "processor seconds, one thread",
            "provenance": provenance(),
        }
        write_json(options.out, record)


if __name__ == "__main__":
    main()
