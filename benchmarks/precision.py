"""Claim: in bf16 a step of the house model takes less CPU time than in fp32 from some width on.

python benchmarks/precision.py [--out records/precision.json]

A forward and backward pass and an AdamW step under bf16 autocast and in fp32, alternating, one thread, CPU seconds.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from paired import ratio, rounds, train_step

from loopscale import LoopedTransformer, ModelConfig, build_optimizer
from loopscale.files import write_json
from loopscale.train import provenance

WIDTHS = (64, 128, 256, 512)


def compared(width: int, pairs: int, loops: int = 8, layers: int = 2) -> dict[str, object]:
    """Return the ratio of a step in bf16 over one in fp32 at a width."""
    model = LoopedTransformer(ModelConfig(vocab_size=256, width=width, layers=layers, loops=loops, head_dim=32))
    optimizer = build_optimizer(model, "adamw", lr=1e-4)
    tokens_BT = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))

    def step(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            train_step(model, optimizer, tokens_BT)

    seconds = rounds({"bf16": lambda: step(True), "fp32": lambda: step(False)}, pairs)
    return {"width": width, **ratio(seconds["bf16"], seconds["fp32"])}


def main() -> None:
    """Measure each width and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in options.widths:
        rows.append(compared(width, options.pairs))
        print(rows[-1], flush=True)
    if options.out:
        shape = {"loops": 8, "layers": 2, "head_dim": 32, "batch": 4, "context": 64}
        write_json(
            options.out, {"claim": "a step in bf16 / in fp32", "shape": shape, "rows": rows, "provenance": provenance()}
        )


if __name__ == "__main__":
    main()
