"""Claim: a training step of LoopedTransformer against the same loop as others write it (eager against eager).

python benchmarks/step_time.py [--out records/step_time.json] [--compile]     needs: loopscale[hf] x-transformers

`plain` and `llama` hold our weights (eps folded into Llama's output projections) and must give our logits before they are
timed. With --compile all are compiled, ours by its body, the others block by block in the same way.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
from functools import partial
from pathlib import Path

import torch
from paired import ratio, rounds, train_step
from peers import PEERS

from loopscale import LoopedTransformer, ModelConfig
from loopscale.atomic import write_json
from loopscale.train import provenance


def measure(loops: int, pairs: int, compiled: bool, batch: int, context: int) -> dict[str, object]:
    config = ModelConfig(vocab_size=256, width=256, layers=2, loops=loops, head_dim=32)
    ours = LoopedTransformer(config)
    tokens = torch.randint(0, 256, (batch, context), generator=torch.Generator().manual_seed(0))
    models: dict[str, torch.nn.Module] = {"ours": ours}
    for name, make in PEERS.items():
        models[name] = peer = make(config)
        if hasattr(peer, "copy_from"):
            peer.copy_from(ours)
            torch.testing.assert_close(ours(tokens), peer(tokens), atol=2e-4, rtol=1e-3)
    if compiled:
        _compile(models)
    actions = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
        actions[name] = partial(train_step, model, optimizer, tokens)
    seconds = rounds(actions, pairs)
    return {
        "loops": loops,
        "seconds_median": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "against": {name: ratio(seconds["ours"], seconds[name]) for name in PEERS},
    }


def _compile(models: dict[str, torch.nn.Module]) -> None:
    models["ours"].core.compile_body()
    for block in models["plain PyTorch loop"].blocks:
        block.compile(dynamic=False)
    for layer in models["transformers Llama layers"].llama.layers:
        layer.compile(dynamic=False)
    models["x-transformers"].decoder.compile(dynamic=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--loops", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(n, options.pairs, options.compile, options.batch, options.context) for n in options.loops]
    first = min(rows[0]["against"].items(), key=lambda item: -item[1]["ratio_median"])
    kind = "compiled" if options.compile else "eager"
    record = {
        "claim": f"{kind} step of LoopedTransformer / the fastest peer ({first[0]}), N = {rows[0]['loops']}",
        "clock": "CPU seconds of one thread",
        "shape": {"width": 256, "layers": 2, "head_dim": 32, "context": options.context, "batch": options.batch},
        **first[1],
        "rows": rows,
        "provenance": {
            **provenance(),
            **{name: importlib.metadata.version(name) for name in ("transformers", "x-transformers")},
        },
    }
    for row in rows:
        print(row["loops"], row["seconds_median"], {name: r["ratio_median"] for name, r in row["against"].items()})
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
