"""Paired timing: A B A B ..., so that a change of the machine's speed hits all; ratios are taken pair by pair.

On a CPU the clock is the time of the process, which does not run while others have the core; on a GPU it is the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens_BT: Tensor, **options: object) -> None:
    loss = F.cross_entropy(model(tokens_BT, **options)[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def clock(device: str = "cpu") -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rounds(
    actions: Mapping[str, Callable[[], object]], count: int, device: str = "cpu", warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of each action in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(warm + count):
        for name, action in actions.items():
            began = clock(device)
            action()
            if number >= warm:
                seconds[name].append(clock(device) - began)
    return seconds


def ratio(above: list[float], below: list[float]) -> dict[str, object]:
    """Median and range of the pairwise ratio."""
    found = sorted(a / b for a, b in zip(above, below, strict=True))
    return {
        "ratio_median": round(statistics.median(found), 3),
        "ratio_range": [round(found[0], 3), round(found[-1], 3)],
        "pairs": len(found),
    }
