"""Claim: `Monitor` costs under 2 % of the step time at its default, and training with it gives the same loss.

python benchmarks/diagnose_monitor.py [--out records/diagnose_monitor.json]

One training loop, one model: blocks of 50 steps (one watched step in 50, the default) with and without a monitor alternate,
A B A B ..., so that a change of the machine's speed hits both; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from loopscale import LoopedTransformer, ModelConfig
from loopscale.atomic import write_json
from loopscale.diagnosis import Monitor
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

    def plain(self) -> float:
        began = time.perf_counter()
        for _ in range(EVERY):
            self.step()
        return time.perf_counter() - began

    def watched(self) -> float:
        began = time.perf_counter()
        with Monitor(self.model) as monitor:
            for _ in range(EVERY):
                self.step()
                monitor.step()
        assert len(monitor.samples) == 1
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    bench.plain()
    pairs = [(bench.plain(), bench.watched()) for _ in range(options.pairs)]
    ratios = sorted(watched / plain for plain, watched in pairs)
    cost = statistics.median(ratios) - 1
    print(f"a monitor costs {cost:.2%} of the step time (pairs {ratios[0] - 1:.2%} to {ratios[-1] - 1:.2%})")
    if options.out:
        record = {
            "claim": "Monitor at its default (one step in 50) costs under 2 % of the step time",
            "shape": {"width": 64, "layers": 2, "loops": 8, "context": 64, "batch": 8},
            "cost_median": round(cost, 4),
            "cost_range": [round(ratios[0] - 1, 4), round(ratios[-1] - 1, 4)],
            "pairs": len(pairs),
            "steps_per_side": EVERY,
            "provenance": provenance(),
        }
        write_json(options.out, record)


if __name__ == "__main__":
    main()
