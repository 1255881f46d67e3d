"""Claims: sampled N costs no more than a fixed N of the same mean; the residual scale costs next to nothing.

python benchmarks/sampled_loops.py [--out records/sampled_loops.json]

Sampled: log-normal Poisson of mean 4; the fixed arm repeats N = 4, its time scaled to the visits of the sampled arm.
Scale: the step with eps = 1/(N sqrt L) against the same step where eps is 1 and is left out.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from paired import ratio, rounds, train_step

from loopscale import LoopedTransformer, ModelConfig
from loopscale.files import write_json
from loopscale.nn.sampler import PoissonLoops
from loopscale.nn.transformer import PreNormBlock
from loopscale.train import provenance


def sampled(steps: int, blocks: int, compiled: bool) -> dict[str, object]:
    draws = [
        PoissonLoops(mean=4, most=16).draw(step, steps * (blocks + 1), 0, 4) for step in range(steps * (blocks + 1))
    ]
    model = LoopedTransformer(ModelConfig(vocab_size=256, width=256, layers=2, loops=4))
    if compiled:
        model.core.compile_body()
    tokens = torch.randint(0, 256, (2, 128), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    at = iter(draws)

    def run_fixed() -> None:
        for _ in range(steps):
            train_step(model, optimizer, tokens, loops=4)

    def run_sampled() -> None:
        for _ in range(steps):
            train_step(model, optimizer, tokens, loops=next(at))

    seconds = rounds({"sampled": run_sampled, "fixed": run_fixed}, blocks, warm=1)
    used = draws[steps:]
    visits = [sum(used[i * steps : (i + 1) * steps]) / (4 * steps) for i in range(blocks)]
    scaled = [time * factor for time, factor in zip(seconds["fixed"], visits, strict=True)]
    return {**ratio(seconds["sampled"], scaled), "mean_loops": sum(used) / len(used), "steps": len(used)}


def cost_of_scale(pairs: int) -> dict[str, object]:
    config = ModelConfig(vocab_size=256, width=256, layers=2, loops=8)
    tokens = torch.randint(0, 256, (2, 256), generator=torch.Generator().manual_seed(0))
    scaled, plain = LoopedTransformer(config), LoopedTransformer(config)

    class Unscaled(PreNormBlock):
        def forward(self, x, rotation, scale, skip, slot=None):
            x = x + self.attention(self.attention_norm(x), rotation, slot)
            return x + self.mlp(self.mlp_norm(x))

    for block in plain.core:
        block.__class__ = Unscaled
    actions = {}
    for name, model in (("scaled", scaled), ("plain", plain)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
        actions[name] = partial(train_step, model, optimizer, tokens)
    seconds = rounds(actions, pairs)
    return ratio(seconds["scaled"], seconds["plain"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, cost = sampled(options.steps, options.blocks, options.compile), cost_of_scale(options.pairs)
    print("sampled / fixed", found, "\nscaled / plain", cost)
    record = {
        "claim": "a step of sampled N (log-normal Poisson, mean 4) / a fixed N of the same visits",
        **found,
        "cost_of_scale": cost,
        "clock": "CPU seconds of one thread",
        "provenance": provenance(),
    }
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
