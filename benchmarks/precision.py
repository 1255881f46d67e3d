"""Claim: in bf16 a step of the house model takes less CPU time than in fp32 from some width on.

python benchmarks/precision.py [--out records/precision.json]   the peer needs loopscale[hf]

A forward and backward pass and an AdamW step under bf16 autocast and in fp32, alternating, one thread, CPU seconds. At the
sizes of PEERED the fastest peer of step_time.py, the same network with our weights, takes its steps between ours: in fp32,
as people run it, and under the same autocast.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from paired import ratio, rounds, train_step
from peers import LoopedLlama
from torch import Tensor, nn

from loopscale import LoopedTransformer, ModelConfig
from loopscale.files import write_json
from loopscale.train import provenance

WIDTHS = (64, 128, 256, 512)


PEERED = ((256, 8), (256, 32), (512, 8), (512, 32))  # width, loops


def ours(width: int, loops: int = 8, layers: int = 2) -> LoopedTransformer:
    """Make the house model."""
    return LoopedTransformer(ModelConfig(vocab_size=256, width=width, layers=layers, loops=loops, head_dim=32))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens_BT: Tensor, bf16: bool) -> None:
    """Train one step."""
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        train_step(model, optimizer, tokens_BT)


def in_both(model: nn.Module) -> dict[str, partial[None]]:
    """Give the step of a model in either precision."""
    tokens_BT = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    return {name: partial(step, model, optimizer, tokens_BT, name == "bf16") for name in ("bf16", "fp32")}


def compared(width: int, pairs: int) -> dict[str, object]:
    """Return the ratio of a step in bf16 over one in fp32 at a width."""
    seconds = rounds(in_both(ours(width)), pairs)
    return {"width": width, **ratio(seconds["bf16"], seconds["fp32"])}


def peered(width: int, loops: int, pairs: int) -> dict[str, object]:
    """Return our step, in the precision that is faster here, over the peer's in fp32 and over the peer's in the same."""
    mine = ours(width, loops)
    peer = LoopedLlama(mine.config)
    peer.copy_from(mine)
    steps = {f"{who} {name}": one for who, m in (("ours", mine), ("peer", peer)) for name, one in in_both(m).items()}
    seconds = rounds(steps, pairs, warm=1)
    auto = min(("bf16", "fp32"), key=lambda name: sum(seconds[f"ours {name}"]))
    taken = seconds[f"ours {auto}"]
    return {
        "width": width,
        "loops": loops,
        "auto": auto,
        "over_fp32": ratio(taken, seconds["peer fp32"]),
        "over_the_same": ratio(taken, seconds[f"peer {auto}"]),
    }


def main() -> None:
    """Measure each width and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--peered", type=int, default=len(PEERED), help="how many sizes are held against the peer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in options.widths:
        rows.append(compared(width, options.pairs))
        print(rows[-1], flush=True)
    against = []
    for width, loops in PEERED[: options.peered]:
        against.append(peered(width, loops, options.pairs if loops < 32 else max(1, options.pairs - 2)))
        print(against[-1], flush=True)
    if options.out:
        shape = {"loops": 8, "layers": 2, "head_dim": 32, "batch": 4, "context": 64}
        record = {
            "claim": "a step in bf16 / in fp32",
            "shape": shape,
            "rows": rows,
            "peer": "transformers Llama layers",
        }
        write_json(options.out, {**record, "against": against, "provenance": provenance()})


if __name__ == "__main__":
    main()
