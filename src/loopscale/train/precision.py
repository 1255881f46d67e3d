"""`train.precision = "auto"`: fp32 or bf16 autocast, by the time that some steps take here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from loopscale.train.task import Task, buffers_kept, length, rows_of, to_device

FEWEST = 50  # steps of a run that repays the measurement
ROUNDS = 3
WORTH = 0.9  # of the time in fp32: what bf16 may take at most to be chosen
CLOSE = 0.02  # the largest relative difference of the first loss


def settled(task: Task) -> Task:
    """Give the task in the precision to train it in, with the reason in its origin; "auto" is measured.

    Measuring changes neither weights nor buffers nor random state.
    """
    asked = task.config.train.precision
    record = _choice(task) if asked == "auto" else {"chosen": asked}
    return replace(fixed(task, record["chosen"]), origin={**task.origin, "precision": record})


def _choice(task: Task) -> dict[str, Any]:
    if task.config.train.steps < FEWEST:
        return {"chosen": "fp32", "why": f"fewer than {FEWEST} steps do not repay a measurement"}
    if not has_bf16(next(task.model.parameters()).device):
        return {"chosen": "fp32", "why": "no bf16 instructions here"}
    measured = measure(task)
    chosen = "bf16" if measured["refused"] is None and measured["ratio"] <= WORTH else "fp32"
    why = measured["refused"] or f"a step in bf16 takes {measured['ratio']:.2f} of the time in fp32"
    return {"chosen": chosen, "why": why, "step_seconds": measured["seconds"]}


def slower(task: Task) -> str | None:
    """Say how slow bf16 is where the config asks for it and the processor has no instructions for it, else None."""
    if task.config.train.precision != "bf16" or has_bf16(next(task.model.parameters()).device):
        return None
    return (
        f"this processor has no bf16 instructions: a step takes {measure(task)['ratio']:.1f} times as long as in fp32, "
        "so leave train.precision at auto"
    )


def has_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 matrices by instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def measure(task: Task) -> dict[str, Any]:
    """Time forward and backward of the first batch in both precisions, in turn: the fastest of some rounds counts.

    `refused` says why bf16 cannot be trusted: the stream would be bf16 too, or the loss is a different one.
    """
    device = next(task.model.parameters()).device
    whole = to_device(task.batches(0), device)
    parts = task.config.train.accumulate
    batch = whole if parts == 1 else rows_of(whole, slice(0, (length(whole) or parts) // parts))
    seconds: dict[str, float] = {"fp32": float("inf"), "bf16": float("inf")}
    losses = dict[str, float]()
    kinds = set[torch.dtype]()

    def step(name: str) -> float:
        began = _now(device)
        with task.drawing(0), torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16"):
            loss = task.loss(task.network, batch, task.config.model.loops)
        loss.backward()  # type: ignore[no-untyped-call]
        losses[name] = float(loss.detach())
        return _now(device) - began

    def note(output: Any) -> None:
        stream = output[0] if isinstance(output, (tuple, list)) else output
        kinds.add(getattr(stream, "dtype", torch.float32))

    with buffers_kept(task.model):
        with task.visits.noted(lambda: step("bf16"), lambda given: None, note):
            step("bf16")
        step("fp32")
        for _ in range(ROUNDS):
            for name in seconds:
                seconds[name] = min(seconds[name], step(name))
    gap = abs(losses["bf16"] - losses["fp32"])
    refused = None
    if torch.bfloat16 in kinds:
        refused = "under autocast the stream of this model would be bf16"
    elif not gap <= CLOSE * abs(losses["fp32"]):
        refused = f"the first loss is {losses['bf16']:.4g} in bf16 and {losses['fp32']:.4g} in fp32"
    shown = {name: float(f"{value:.3g}") for name, value in seconds.items()}
    return {"seconds": shown, "ratio": seconds["bf16"] / seconds["fp32"], "refused": refused}


def fixed(task: Task, precision: str) -> Task:
    """Give the task in the precision that rank 0 chose."""
    return replace(task, config=task.config.replaced("train", precision=precision))


def _now(device: torch.device) -> float:
    """Read the clock: on a CPU the time of this process, which stands still while others have the cores."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
