"""Do it hundreds of times in one process: memory, tensors and open files stay as they were."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
from tally import Tally
from torch import nn

import loopscale as ls
from loopscale.study import run_trial
from loopscale.train import make_config

CLAIM = "hundreds of diagnoses, attachments, monitored steps and trials in one process keep memory and open files flat"
COUNTS = {"diagnoses": 200, "attach and detach": 500, "monitored steps": 2000, "trials": 300}
ALLOWED = 4.0  # MB between the first third and the end


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            for layer in self.layers:
                x = layer(x)
        return x


def run(world: Path, tally: Tally, names: list[str] | None = None) -> None:
    """Repeat each, with a look at the process after a third and at the end."""
    torch.set_num_threads(1)
    share = min(1.0, tally.count / sum(COUNTS.values()))
    for name, make in KINDS.items():
        if names is not None and name not in names:
            continue
        once, count = make(), max(12, round(COUNTS[name] * share))
        for number in range(count):
            if number == count // 3:
                before = state()
            once(number)
            tally.tried[name] += 1
            if tally.over(most=10**9):
                return tally.fault(f"{name}: the time was up after {number}")
        after = state()
        grown = {key: after[key] - before[key] for key in after}
        tally.measured |= {f"{name}, {key}": round(value, 2) for key, value in grown.items()}
        print(f"{name}: {count}, {grown}", flush=True)
        if grown["MB"] > ALLOWED or grown["open files"] > 0 or grown["tensors"] > 0 or grown["hooks"] > 0:
            tally.fault(f"{name}: from a third on it grew by {grown}")


def state() -> dict[str, float]:
    """What the process holds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    held = gc.get_objects()
    return {
        "MB": resident / 2**20,
        "open files": len(os.listdir("/proc/self/fd")),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in held),
        "hooks": sum(len(one._forward_hooks) for one in held if issubclass(type(one), nn.Module)),
    }


def diagnoses() -> Callable[[int], None]:
    model, batch = Looped(), torch.randn(2, 16)
    return lambda number: ls.diagnose(model, batch, products=4) and None


def attachments() -> Callable[[int], None]:
    model, batch = Looped(), torch.randn(2, 16)
    return lambda number: ls.attach(model, loops=4, batch=batch).detach()


def steps() -> Callable[[int], None]:
    model, batch = Looped(), torch.randn(2, 16)
    monitor, optimizer = ls.Monitor(model, every=10), torch.optim.SGD(model.parameters(), 1e-3)

    def once(number: int) -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        monitor.step()
        del monitor.samples[:]

    return once


def trials() -> Callable[[int], None]:
    values = {
        "model": {"width": 16, "head_dim": 8, "loops": 2},
        "data": {"path": "synthetic:copy", "context": 8, "batch_size": 2},
        "train": {"steps": 3, "eval_batches": 1, "device": "cpu"},
    }

    def once(number: int) -> None:
        config = make_config({**values, "train": {**values["train"], "seed": number}})
        cell = {"rule": "looped", "loops": 2, "lr": 0.01, "strength": 1.0, "seed": number}
        run_trial(str(number), cell, config.to_dict())

    return once


KINDS = {"diagnoses": diagnoses, "attach and detach": attachments, "monitored steps": steps, "trials": trials}
