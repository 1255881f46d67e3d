"""One trial: train a cell's config, and the record that is kept of it. Runs in a worker process with one thread."""

from __future__ import annotations

import os
from typing import Any


def start_worker() -> None:
    """Called first in every worker: one thread each, at the lowest priority. Threads fight at these sizes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(5)
    import torch

    torch.set_num_threads(1)


def run_trial(key: str, cell: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate; the returned record is what `trials/<key>.json` holds (see docs/architecture.md)."""
    from loopscale.train import TrainConfig, fit

    result = fit(TrainConfig.model_validate(config))
    diverged = result.val_loss is None
    return {
        "key": key,
        "cell": cell,
        "config": config,
        "loss": result.val_loss,
        "diverged": diverged,
        "diverged_at": result.diverged_at,
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
        "curve": _thin(result.curve),
        "stream_rms": {"initial": _finite(result.stream_initial), "final": _finite(result.stream_final)},
    }


def _thin(curve: list[Any], most: int = 40) -> list[Any]:
    stride = max(1, len(curve) // most)
    return [[step, _number(loss)] for step, loss in curve[::stride]]


def _finite(values: list[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """JSON has no infinity: a non-finite number is null, the rest keeps six digits."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
