"""Claim: any `x + f(x)` in a `Loop` is flat over N with its rule and not without, and one rate trains it at every N.

python benchmarks/own_blocks.py [--blocks looped_vit ...] [--out records/own_blocks.json]   needs: 'loopscale[examples]'

For each example of examples/blocks: the slopes of `check_parameterization` over N = 1, 2, 4, 8 under its rule and under
`none`; held-out loss and accuracy after 100 AdamW steps at rate 2^-7, the same rate at N = 1 and N = 8, for each seed;
kappa, the alignment of the visits' gradients at N = 8, before and after. A block measured before is kept in the record.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import loopscale as ls
from loopscale.files import write_json
from loopscale.train import provenance

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "blocks"))
BLOCKS = {
    "looped_vit": ("make_model", "looped"),
    "conv_resnet": ("make_model", "looped"),
    "linear_attention": ("make_model", "looped"),
    "moe": ("make_model", "looped"),
    "parallel": ("make_model", "looped"),
    "layer_scale": ("make_model", "looped"),
    "rezero": ("make_rezero", "looped"),
    "post_norm": ("make_model", "deeploop"),
    "post_norm_biased": ("make_biased", "deeploop"),
}
FILES = {"rezero": "layer_scale", "post_norm_biased": "post_norm"}
LOOPS, LR, STEPS, SEEDS = (1, 2, 4, 8), 2**-7, 100, (0, 1)


def slopes(make: Callable[[int], nn.Module], rule: str) -> dict[str, float]:
    from digits import digits
    from show import classify

    images, labels, *_ = digits()
    check = ls.check_parameterization(
        make, rule, LOOPS, batch=images[:64], loss=lambda output: classify(output, labels[:64])
    )
    return {name: round(value, 3) for name, value in check.slopes.items()}


def kappa(model: nn.Module) -> float | None:
    from digits import digits

    found = ls.diagnose(model, digits()[0][:32], products=0)
    return None if found.kappa is None else round(found.kappa, 3)


def trained(make: Callable[..., nn.Module], rule: str, loops: int, seed: int) -> dict[str, Any]:
    from show import train

    # The examples fix the seed of their weights: each weight is drawn anew as it was, by its own std.
    model = make(loops, rule=rule)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if seed and parameter.ndim >= 2:
            spread = float(parameter.detach().std())
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    before = kappa(model) if loops == 8 else None
    loss, accuracy = train(model, LR, STEPS)
    return {"loss": loss, "accuracy": accuracy, "kappa": before, "kappa_trained": kappa(model) if loops == 8 else None}


def measure(name: str) -> dict[str, Any]:
    function, rule = BLOCKS[name]
    make = getattr(importlib.import_module(FILES.get(name, name)), function)
    without = None if rule != "looped" else slopes(lambda loops: make(loops, rule="none"), "none")
    runs = {str(loops): [trained(make, rule, loops, seed) for seed in SEEDS] for loops in (1, 8)}
    return {"rule": rule, "slopes": slopes(make, rule), "slopes_none": without, "runs": runs}


def experts() -> dict[str, Any]:
    """kappa at N = 8 of the expert matrices and of the same MLP without experts, at the start and after training."""
    from moe import make_model
    from show import train

    found: dict[str, Any] = {}
    for name, sparse in (("experts", True), ("dense", False)):
        model = make_model(8, sparse=sparse)
        at_start = mlp_kappa(model)
        train(model, LR, STEPS)
        found[name] = {"start": at_start, "trained": mlp_kappa(model)}
    return found


def mlp_kappa(model: nn.Module) -> list[float]:
    from digits import digits

    by_parameter = ls.diagnose(model, digits()[0][:32], products=0).details["kappa_by_parameter"]
    return [round(value, 3) for name, value in by_parameter.items() if ".experts." in name or ".mlp." in name]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", nargs="*", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--out", type=Path, default=ROOT / "records" / "own_blocks.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    known, routed = record.get("blocks", {}), record.get("experts")
    for name in args.blocks:
        known[name] = measure(name)
        routed = experts() if name == "moe" else routed
        print(name, json.dumps(known[name]["slopes"]), flush=True)
        write_json(
            args.out,
            {
                "claim": "own blocks are flat over loops and train with one rate at every number of loops",
                "loops": list(LOOPS),
                "steps": STEPS,
                "lr": LR,
                "seeds": list(SEEDS),
                "experts": routed,
                "blocks": {key: known[key] for key in BLOCKS if key in known},
                "provenance": provenance(),
            },
        )
