"""Claims: a cache speeds sampling up at equal tokens; a looped model samples as fast as its unrolled network.

python benchmarks/generation.py [--out records/generation.json]

The unrolled network holds N copies of the layers (same logits, N times the weights). Arms alternate, A B C A B C ..., so
that a change of the machine's speed hits all; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from loopscale import LoopedTransformer, ModelConfig
from loopscale.files import write_json
from loopscale.nn import last_visit, per_visit
from loopscale.train import provenance
from loopscale.train.generation import continued

SHAPE = {"width": 128, "layers": 2, "loops": 8, "prompt": 32, "new_tokens": 96}


def unrolled(looped: LoopedTransformer) -> LoopedTransformer:
    """The same network without sharing: N * L layers, visited once, at the same eps."""
    config, loops = looped.config, looped.config.loops
    made = LoopedTransformer(
        ModelConfig(
            width=config.width,
            layers=loops * config.layers,
            loops=1,
            rule="none",
            strength=looped.residual_scale(loops),
        )
    )
    own = looped.state_dict()
    state = {}
    for name in made.state_dict():
        parts = name.split(".")
        if parts[0] == "core":
            parts[1] = str(int(parts[1]) % config.layers)
        state[name] = own[".".join(parts)]
    made.load_state_dict(state)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    looped = LoopedTransformer(ModelConfig(width=SHAPE["width"], layers=SHAPE["layers"], loops=SHAPE["loops"]))
    copies = unrolled(looped)
    start = torch.randint(0, 256, (SHAPE["prompt"],), generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(copies(torch.tensor([start])), looped(torch.tensor([start])), atol=1e-4, rtol=1e-4)
    arms = {
        "cached": (looped, per_visit),
        "uncached": (looped, None),
        "last_visit": (looped, last_visit),
        "unrolled": (copies, per_visit),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    texts: dict[str, list[int]] = {}
    for _ in range(options.rounds + 1):
        for name, (model, sharing) in arms.items():
            began = time.perf_counter()
            pick = lambda logits: int(logits.argmax())  # noqa: E731
            texts[name] = continued(model, start, SHAPE["new_tokens"], pick, 256, sharing)
            seconds[name].append(time.perf_counter() - began)
    assert texts["cached"] == texts["uncached"]
    seconds = {name: values[1:] for name, values in seconds.items()}

    def ratio(name: str) -> dict[str, float]:
        each = sorted(a / b for a, b in zip(seconds[name], seconds["cached"], strict=True))
        return {"median": round(statistics.median(each), 3), "low": round(each[0], 3), "high": round(each[-1], 3)}

    record = {
        "claim": "time of sampling, over that of the looped model with a cache slot per visit; the same tokens as uncached",
        "shape": SHAPE,
        "rounds": options.rounds,
        "tokens_per_second": {
            name: round(SHAPE["new_tokens"] / statistics.median(values), 1) for name, values in seconds.items()
        },
        "time_ratio": {name: ratio(name) for name in arms if name != "cached"},
        "parameters": {"looped": _count(looped), "unrolled": _count(copies)},
        "provenance": provenance(),
    }
    print(record["tokens_per_second"], record["time_ratio"])
    if options.out:
        write_json(options.out, record)


def _count(model: LoopedTransformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
