"""What the paper's own sizes would cost: parameters, FLOPs and GPU hours of every config, from its numbers. No torch."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parent / "configs"
LOOPS = (1, 2, 4, 8)
RULES, RATES = 3, 9  # arms of the comparison, rates of the sweep
# Assumption: an H100 at 35 % of its 989 bf16 TFLOP/s.
FLOPS_PER_HOUR = 0.35 * 989e12 * 3600


def parameters(config: dict[str, Any]) -> tuple[int, int]:
    """(embedding, one pass through the core): weights of attention and SwiGLU, norms left out."""
    model = config["model"]
    width, hidden = model["width"], 8 * math.ceil(model["width"] * (8 / 3) / 8)
    tables = 1 if model.get("tied_readout") else 2
    return tables * config["data"]["vocab_size"] * width, model["layers"] * (4 * width**2 + 3 * width * hidden)


def flops(config: dict[str, Any], loops: int) -> float:
    """Of one training: 6 per weight used and token, attention's products of the context included."""
    model, data = config["model"], config["data"]
    embedding, core = parameters(config)
    tokens = config["train"]["steps"] * data["batch_size"] * data["context"]
    attention = 12 * model["layers"] * model["width"] * data["context"] / 2
    return tokens * (6 * (embedding / (1 if model.get("tied_readout") else 2) + loops * core) + loops * attention)


def table() -> str:
    """One row a config and number of loops."""
    lines = [
        "| config | parameters | N | tokens | EFLOP a run | H100 hours a run | hours of the sweep, "
        f"{RULES} rules x {RATES} rates |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(CONFIGS.glob("*.toml")):
        config = tomllib.loads(path.read_text())
        tokens = config["train"]["steps"] * config["data"]["batch_size"] * config["data"]["context"]
        for loops in LOOPS:
            cost = flops(config, loops)
            hours = cost / FLOPS_PER_HOUR
            lines.append(
                f"| `{path.name}` | {sum(parameters(config)) / 1e6:.0f}M | {loops} | {tokens / 1e9:.1f}B | "
                f"{cost / 1e18:.0f} | {hours:.0f} | {hours * RULES * RATES:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
