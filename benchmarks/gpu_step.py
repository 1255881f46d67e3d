"""Claims on a GPU: tokens/s and share of the measured matmul peak, memory over N, first compiled step. Not recorded yet.

python benchmarks/gpu_step.py [--small] [--out records/gpu_step.json]

A 180M-class model of the paper's kind: d = 1024, L = 12, N = 4, pre-norm SwiGLU, bf16, T = 2048, compiled. --small runs
the same code on a CPU, tiny. FLOPs: 6 per weight of an executed layer and token, attention 12 T D per layer and token.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from paired import clock, rounds
from peers import LoopedLlama, PlainLoop
from torch import Tensor, nn

from loopscale import LoopedTransformer, ModelConfig
from loopscale.files import write_json
from loopscale.nn import Recompute, compile_checked
from loopscale.train import provenance

FULL = (ModelConfig(vocab_size=32768, width=1024, layers=12, loops=4, head_dim=128, mlp_ratio=8 / 3), 8, 2048)
SMALL = (ModelConfig(vocab_size=256, width=64, layers=2, loops=2, head_dim=32), 2, 64)


def flops_per_token(model: LoopedTransformer, loops: int, context: int) -> float:
    core = sum(p.numel() for p in model.core.parameters() if p.ndim == 2)
    attention = 12 * context * model.config.width * model.config.layers * loops / 2  # causal: half of it
    return 6 * (core * loops + model.config.width * model.config.vocab_size) + attention


def matmul_peak(device: str, size: int) -> float:
    """FLOP/s of a square bf16 product, the best of a few."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(12):
        began = clock(device)
        a @ b
        best = max(best, 2 * size**3 / (clock(device) - began))
    return best


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, device: str) -> None:
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = model(tokens)
    F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def prepared(model: nn.Module, tokens: Tensor, device: str) -> partial[None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    return partial(step, model, optimizer, tokens, device)


def memory(config: ModelConfig, tokens: Tensor, device: str, recompute: Recompute) -> dict[str, float]:
    """Peak bytes of a step above the model, over N."""
    found = {}
    for loops in (1, 4, 16, 64) if device == "cuda" else (1, 2):
        model = LoopedTransformer(dataclasses.replace(config, loops=loops)).to(device)
        model.core.recompute = recompute
        run = prepared(model, tokens, device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            found[str(loops)] = (torch.cuda.max_memory_allocated() - before) / 1e6
        else:
            run()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        parser.error("torch sees no GPU: use --small to try the script on a CPU")
    config, batch, context = SMALL if options.small else FULL
    tokens = torch.randint(0, config.vocab_size, (batch, context), device=device)
    ours = LoopedTransformer(config).to(device)
    models: dict[str, nn.Module] = {"ours": ours, "plain": PlainLoop(config), "llama": LoopedLlama(config)}
    for peer in (models["plain"], models["llama"]):
        peer.copy_from(LoopedTransformer(config))
        peer.to(device)
    began = time.perf_counter()
    backend = {} if device == "cuda" else {"backend": "aot_eager"}
    compared = compile_checked(ours, tokens[:1], autocast=torch.bfloat16, **backend)
    compile_seconds = time.perf_counter() - began
    for peer in (models["plain"].blocks, models["llama"].llama.layers):
        for block in peer:
            block.compile(dynamic=False, **backend)
    seconds = rounds({name: prepared(m, tokens, device) for name, m in models.items()}, options.steps, device, warm=3)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    achieved = flops_per_token(ours, config.loops, context) * batch * context / medians["ours"]
    record = {
        "claim": "a bf16 training step on one GPU against the measured matmul peak",
        "parameters": sum(p.numel() for p in ours.parameters()),
        "seconds_median": medians,
        "tokens_per_second": {name: batch * context / value for name, value in medians.items()},
        "share_of_matmul_peak": achieved / matmul_peak(device, 8192 if device == "cuda" else 256),
        "compile_seconds": compile_seconds,
        "gradient_difference": compared.gradient,
        "memory_mb": {
            "kept": memory(config, tokens, device, Recompute()),
            "at most 8 streams": memory(config, tokens, device, Recompute(1, 8)),
        },
        "provenance": provenance(),
    }
    print(record)
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
