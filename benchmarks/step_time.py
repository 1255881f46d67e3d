"""Claim: a training step of LoopedTransformer against the same loop as others write it, eager and compiled alike.

python benchmarks/step_time.py [--out records/step_time.json]   needs: loopscale[hf] x-transformers, open-mythos, spiral-lm

`plain` and `llama` hold our weights (eps folded into Llama's output projections) and must give our logits before they are
timed. Compiled: ours by its body, the others block by block in the same way. `kernels` is the share of the fastest peer's
step that matrix products and attention take: no way of writing the loop saves it. Projects with an architecture of their
own are held against ours by seconds per floating-point operation, where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
from functools import partial
from pathlib import Path

import torch
from paired import ratio, rounds, train_step
from peers import OTHERS, PEERS
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from loopscale import LoopedTransformer, ModelConfig
from loopscale.files import write_json
from loopscale.train import provenance

KERNELS = {"matrix products": ("aten::mm", "aten::addmm", "aten::bmm"), "attention": ("flash_attention",)}
MODULES = {"open-mythos": "open_mythos", "spiral-lm": "spiral"}


def measure(loops: int, pairs: int, compiled: bool, batch: int, context: int) -> dict[str, object]:
    config = ModelConfig(vocab_size=256, width=256, layers=2, loops=loops, head_dim=32)
    ours = LoopedTransformer(config)
    tokens = torch.randint(0, 256, (batch, context), generator=torch.Generator().manual_seed(0))
    models: dict[str, nn.Module] = {"ours": ours}
    for name, make in PEERS.items():
        models[name] = peer = make(config)
        if hasattr(peer, "copy_from"):
            peer.copy_from(ours)
            torch.testing.assert_close(ours(tokens), peer(tokens), atol=2e-4, rtol=1e-3)
    if compiled:
        _compile(models)
    steps = {name: _step(model, tokens) for name, model in models.items()}
    seconds = rounds(steps, pairs)
    against = {name: ratio(seconds["ours"], seconds[name]) for name in PEERS}
    fastest = max(against, key=lambda name: against[name]["ratio_median"])
    row: dict[str, object] = {
        "loops": loops,
        "compiled": compiled,
        "seconds_median": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "against": against,
        "fastest_peer": fastest,
    }
    if not compiled:
        row["kernels"] = _kernels(steps[fastest])
        row["per_flop"] = _per_flop(config, models["ours"], tokens, pairs)
    return row


def _step(model: nn.Module, tokens: Tensor) -> partial[None]:
    return partial(train_step, model, torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True), tokens)


def _kernels(step: partial[None]) -> dict[str, float]:
    """Shares of the processor time of three steps."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    whole = sum(times.values())
    return {
        kind: round(sum(t for key, t in times.items() if any(k == key or k in key[6:] for k in keys)) / whole, 3)
        for kind, keys in KERNELS.items()
    }


def _per_flop(config: ModelConfig, ours: nn.Module, tokens: Tensor, pairs: int) -> dict[str, dict[str, object]]:
    """Ours over each other project that is installed: seconds per counted floating-point operation of a step."""
    installed = [name for name in OTHERS if importlib.util.find_spec(MODULES[name])]
    models = {"ours": ours, **{name: OTHERS[name](config) for name in installed}}
    flops = {}
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter:
            model(tokens).sum().backward()
        model.zero_grad()
        flops[name] = counter.get_total_flops()
    seconds = rounds({name: _step(model, tokens) for name, model in models.items()}, pairs, warm=1)
    each = {name: [t / flops[name] for t in times] for name, times in seconds.items()}
    return {
        name: {
            **ratio(each["ours"], each[name]),
            "gflops_a_second": round(1e-9 / statistics.median(each[name]), 1),
            "gflop_a_step": round(flops[name] / 1e9, 2),
        }
        for name in models
    }


def _compile(models: dict[str, nn.Module]) -> None:
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
    parser.add_argument("--only", choices=("eager", "compiled"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(n, options.pairs, compiled, options.batch, options.context)
        for compiled in (False, True)
        if options.only != ("eager" if compiled else "compiled")
        for n in options.loops
    ]
    first = rows[0]
    peer = first["fastest_peer"]
    record = {
        "claim": f"{'compiled' if first['compiled'] else 'eager'} step of LoopedTransformer / the fastest peer "
        f"({peer}), N = {first['loops']}",
        "clock": "CPU seconds of one thread",
        "shape": {"width": 256, "layers": 2, "head_dim": 32, "context": options.context, "batch": options.batch},
        **first["against"][peer],
        "rows": rows,
        "provenance": {**provenance(), "peers": {name: _version(name) for name in VERSIONS}},
    }
    for row in rows:
        print(row)
    if options.out:
        write_json(options.out, record)


VERSIONS = ("transformers", "x-transformers", "open-mythos", "spiral-lm")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
