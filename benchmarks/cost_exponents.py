"""How the cost of a training step grows: exponents over N, L, width, batch and context, for time, memory and checkpoint.

python benchmarks/cost_exponents.py [--out records/cost_exponents.json]

Each axis is swept with the others at their base; an exponent is the slope of a line in log2 of both. Time is CPU seconds
of a forward and backward pass and an AdamW step (the least of several, one thread), memory what the graph keeps
for the backward pass, a checkpoint its weights and Adam's two moments. The driver's exponent is
read off records/driver.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from paired import rounds, train_step

from loopscale import LoopedTransformer, ModelConfig, build_optimizer
from loopscale.files import write_json
from loopscale.train import provenance

BASE = {"loops": 4, "layers": 2, "width": 128, "batch": 4, "context": 64}
AXES = {
    "loops": (2, 4, 8, 16, 32),
    "layers": (1, 2, 4, 8),
    "width": (64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16),
    "context": (32, 64, 128, 256, 512),
}
SMALL = {axis: values[:2] for axis, values in AXES.items()}
DRIVER = Path(__file__).resolve().parents[1] / "records" / "driver.json"


def measured(size: dict[str, int], steps: int) -> dict[str, float]:
    """Return seconds of a step, MB kept for the backward pass and MB of a checkpoint at a size."""
    config = ModelConfig(vocab_size=256, width=size["width"], layers=size["layers"], loops=size["loops"], head_dim=32)
    model = LoopedTransformer(config)
    optimizer = build_optimizer(model, "adamw", lr=1e-4)
    tokens_BT = torch.randint(256, (size["batch"], size["context"]), generator=torch.Generator().manual_seed(0))
    seconds = rounds({"step": lambda: train_step(model, optimizer, tokens_BT)}, steps, warm=1)["step"]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"seconds": min(seconds), "mb_kept": _kept(model, tokens_BT) / 1e6, "mb_checkpoint": 3 * weights / 1e6}


def _kept(model: torch.nn.Module, tokens_BT: torch.Tensor) -> int:
    """Count the bytes that the graph of a forward pass keeps, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(tokens_BT).float().square().mean()
        total = sum(held.values())
    del loss
    return total


def exponent(sizes: list[int], costs: list[float]) -> dict[str, float]:
    """Fit cost ~ size^a: a over all sizes, and between the two largest."""
    x, y = [math.log2(size) for size in sizes], [math.log2(cost) for cost in costs]
    middle = sum(x) / len(x)
    slope = sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    return {"all": round(slope, 2), "last": round((y[-1] - y[-2]) / (x[-1] - x[-2]), 2)}


def main() -> None:
    """Measure every axis and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="two sizes of each axis, for a test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for axis, sizes in (SMALL if options.small else AXES).items():
        points = [measured({**BASE, axis: size}, options.steps) for size in sizes]
        fits = {name: exponent(list(sizes), [point[name] for point in points]) for name in points[0]}
        rows[axis] = {"sizes": list(sizes), "points": points, "exponents": fits}
        print(axis, fits, flush=True)
    driver = json.loads(DRIVER.read_text())["rows"]
    counts = [row["trials"] for row in driver]
    totals = [row["trials"] * row["driver_ms_per_trial"] for row in driver]
    rows["trials"] = {"sizes": counts, "exponents": {"driver": exponent(counts, totals)}}
    if options.out:
        write_json(options.out, {"base": BASE, "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
