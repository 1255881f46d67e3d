"""The first value that is not finite: which parameter, or which module at which visit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.diagnosis.diagnosis import Finding, finding
from loopscale.probe.batch import call_model, first_float
from loopscale.probe.noting import Given, noting
from loopscale.probe.tape import tensors_in


def first_nonfinite(model: nn.Module, batch: Any, output: Any) -> list[Finding]:
    """Return one finding, or none when weights and output are finite. Minus infinity in attention masks does not count."""
    bad = next((n for n, p in model.named_parameters() if p.is_floating_point() and not _finite(p)), None)
    if bad is not None:
        return [
            _finding(
                bad,
                f"parameter `{bad}` holds values that are not finite",
                "the checkpoint or a training step broke it",
                "go back to a checkpoint before the divergence, and lower the rate or scale the residual",
            )
        ]
    value = first_float(output)
    if value is None or _finite(value):
        return []
    name, visit = _first_module(model, batch)
    return [
        _finding(
            name,
            f"the output of `{name}` at visit {visit} is the first that is not finite",
            "the stream or an activation left the range of its number format",
            "look at growth: scale the residual branches by 1/(N sqrt(L)), or keep the stream in fp32",
        )
    ]


def _finding(where: str, evidence: str, cause: str, remedy: str) -> Finding:
    return finding("nonfinite", where, evidence, remedy=remedy, cause=cause)


def _finite(value: Tensor) -> bool:
    if not value.numel():
        return True
    # The extremes are not finite when any value is not; unlike a mask of them they take no memory.
    low, high = torch.aminmax(value.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _first_module(model: nn.Module, batch: Any) -> tuple[str, int]:
    visits: Counter[str] = Counter()
    found: list[tuple[str, int]] = []

    def note(name: str, _module: nn.Module, _given: Given, out: Any) -> None:
        visits[name] += 1
        if not found and any(not _finite(t) for t in tensors_in(out) if t.is_floating_point()):
            found.append((name or "model", visits[name]))

    with torch.no_grad(), noting(model, note):
        call_model(model, batch)
    return found[0] if found else ("model", 1)
