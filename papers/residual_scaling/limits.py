"""Reports in which 1/N brought nothing: their conditions at a small size. `python papers/residual_scaling/limits.py`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from networks import MLP, Attention
from outcome import over_seeds
from recorded import laptop
from torch import Tensor, nn
from trained import base

import loopscale as ls
from loopscale.atomic import write_json
from loopscale.train import provenance

RECORD = Path(__file__).resolve().parents[2] / "records" / "paper" / "limits.json"
STEPS, SEEDS, RATES, WIDTH = 60, range(3), (2.0**-7, 2.0**-6, 2.0**-5), 32
Row = dict[str, str]


class Small(nn.Module):
    """Bytes -> logits through a looped attention and MLP. `inject`: factor on the input added at every visit, from N."""

    def __init__(self, rule: str, loops: int, inject: Callable[[int], float] = lambda _: 0.0) -> None:
        super().__init__()
        self.loops, self.inject = loops, inject
        self.embedding, self.position = nn.Embedding(256, WIDTH), nn.Embedding(64, WIDTH)
        branches = (Attention(WIDTH), MLP(WIDTH, "swiglu"))
        stack = nn.Sequential(*(ls.ScaledResidual(branch, norm=nn.RMSNorm(WIDTH)) for branch in branches))
        self.loop = ls.Loop(stack, loops=loops, rule=rule, layers=1)
        self.final_norm, self.readout = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, 256]."""
        e = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1]))
        h, eps, add = e, self.loop.residual_scale(self.loops), self.inject(self.loops)
        for _ in range(self.loops):
            h = h + add * e
            for branch in self.loop.stack:
                h = h + eps * branch.branch(branch.norm(h))
        return self.readout(self.final_norm(h))


def damped_init(model: Small) -> Small:
    """GPT-2's initialisation on top: output projections by 1/sqrt(2 N)."""
    with torch.no_grad():
        for branch in model.loop.stack:
            last = branch.branch.out if isinstance(branch.branch, Attention) else branch.branch.down
            last.weight.div_(math.sqrt(2 * model.loops))
    return model


class Learned(Small):
    """eps = 1 and a learned scalar on every branch, initialised at 1."""

    def __init__(self, loops: int) -> None:
        super().__init__("none", loops)
        for branch in self.loop.stack:
            branch.branch = Gained(branch.branch)


class Gained(nn.Module):
    """gain * branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.gain = branch, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the same."""
        return self.gain * self.branch(x)


def train(make: Callable[[], Small], rate: float, seed: int, optimizer: str) -> float:
    """Validation loss after STEPS steps; inf when it diverged."""
    data = base().load_data()
    torch.manual_seed(seed)
    model = make()
    chosen = ls.build_optimizer(model, optimizer, lr=rate)
    for step in range(STEPS):
        for group in chosen.param_groups:
            group["lr"] = group["initial_lr"] * min((step + 1) / 10, 1 - step / STEPS)
        x, y = (torch.from_numpy(part) for part in data.batch(step, seed, 8, 32))
        chosen.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        if not math.isfinite(float(loss.detach())):
            return math.inf
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
    with torch.no_grad():
        pairs = data.validation_batches(8, 32, 32)
        losses = [
            F.cross_entropy(model(torch.from_numpy(x)).flatten(0, 1), torch.from_numpy(y).flatten()) for x, y in pairs
        ]
    return float(torch.stack(losses).mean())


def best(make: Callable[[], Small], optimizer: str = "adamw") -> list[float]:
    """Losses by seed at the rate with the smallest mean."""
    table = [[train(make, rate, seed, optimizer) for seed in SEEDS] for rate in RATES]
    return min(table, key=lambda losses: sum(losses))


def compared(condition: str, arms: Mapping[str, list[float]], says: Callable[[float, float], str]) -> Row:
    """Each arm's loss, and the paired difference of the last two with its interval."""
    first, second = list(arms.values())[-2:]
    difference = over_seeds("", [a - b for a, b in zip(first, second, strict=True)], (0.0, 0.0))
    low, high = difference.interval
    names = list(arms)[-2:]
    return {
        "condition": condition,
        "loss, nats": ", ".join(f"{name} {np.mean(losses):.3f}" for name, losses in arms.items()),
        "difference [95 % interval]": f"{names[0]} - {names[1]}: {difference.value:+.3f} [{low:+.3f}, {high:+.3f}], n = 3",
        "so": says(low, high),
    }


def helps(low: float, high: float) -> str:
    """In words, what a difference of the other arm minus 1/N says."""
    return "1/N helps" if low > 0 else "1/N hurts" if high < 0 else "no difference shown"


def coarse_grid() -> Row:
    """No shift of the optimum on a factor-2 grid with N <= 4: seen with the laptop record."""
    found = laptop()["rules"]["none"]
    coarse = []
    for n in ("1", "2", "4"):
        even = [p for p in found["points"][n] if round(math.log2(p["lr"]) * 2) % 2 == 0 and p["loss"] is not None]
        coarse.append(round(math.log2(min(even, key=lambda p: p["loss"])["lr"])))
    low, high = found["slope_interval"]
    still = len(set(coarse)) == 1
    return {
        "condition": "factor-2 grid of rates, N = 1, 2, 4, no scale",
        "loss, nats": "best rates " + ", ".join(f"2^{power}" for power in coarse),
        "difference [95 % interval]": f"sqrt(2) grid, fitted, N to 16: {found['slope']:+.2f} octaves per doubling "
        f"[{low:+.2f}, {high:+.2f}], n = 3",
        "so": "the coarse grid shows no drift where there is one"
        if still and high < 0
        else "the coarse grid shows it too",
    }


def rows() -> list[Row]:
    """One row a report."""
    scaled = best(lambda: Small("looped", 8))
    return [
        coarse_grid(),
        compared(
            "output projections initialised by 1/sqrt(2 N), N = 8",
            {
                "none": best(lambda: Small("none", 8)),
                "none and damped init": best(lambda: damped_init(Small("none", 8))),
                "1/N": scaled,
            },
            helps,
        ),
        compared(
            "1/N with that initialisation on top, N = 8",
            {"both": best(lambda: damped_init(Small("looped", 8))), "1/N alone": scaled},
            lambda low, high: "the second rule hurts" if low > 0 else "helps" if high < 0 else "no difference shown",
        ),
        compared(
            "N = 2, learned scalars on the branches, Muon",
            {"learned": best(lambda: Learned(2), "muon"), "1/N": best(lambda: Small("looped", 2), "muon")},
            helps,
        ),
        compared(
            "input added at every visit, eps = 1/N, N = 16",
            {
                "unscaled": best(lambda: Small("looped", 16, lambda _: 1.0)),
                "times 1/N": best(lambda: Small("looped", 16, lambda n: 1 / n)),
            },
            lambda low, high: "the unscaled path costs" if low > 0 else "gains" if high < 0 else "no difference shown",
        ),
    ]


def main() -> None:
    """Run all and keep the record."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    record: dict[str, Any] = {
        "sentence": "Each row repeats the condition of a report, each arm at its own best of three rates, three seeds.",
        "table": rows(),
        "setting": f"bytes of Python sources, d = {WIDTH}, one attention and one SwiGLU branch, {STEPS} steps",
        "command": "python papers/residual_scaling/limits.py",
    }
    record["provenance"] = {**provenance(), "seconds": round(time.perf_counter() - began, 1)}
    write_json(RECORD, record)


if __name__ == "__main__":
    main()
