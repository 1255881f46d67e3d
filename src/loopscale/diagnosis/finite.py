"""The first value that is not finite: which parameter, or which module at which visit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from loopscale.diagnosis.diagnosis import Finding, finding
from loopscale.diagnosis.setting import Setting
from loopscale.probe.batch import first_float
from loopscale.probe.tape import Site, Stop


def first_nonfinite(setting: Setting, output: Any) -> list[Finding]:
    """Return one finding, or none when weights and output are finite. Minus infinity in attention masks does not count."""
    bad = next((n for n, p in setting.model.named_parameters() if p.is_floating_point() and not _finite(p)), None)
    if bad is not None:
        said = f"parameter `{bad}` holds values that are not finite"
        cause = "the checkpoint or a training step broke it"
        remedy = "go back to a checkpoint before the divergence, and lower the rate or scale the residual"
        return [finding("nonfinite", bad, said, remedy=remedy, cause=cause)]
    value = first_float(output)
    if value is None or _finite(value):
        return []
    where, said = _first(setting)
    cause = "the stream or an activation left the range of its number format, or something is divided by nothing"
    remedy = (
        "look at growth: scale the residual branches by 1/(N sqrt(L)), or keep the stream in fp32; rows of a softmax "
        "that are masked as a whole give NaN"
    )
    return [finding("nonfinite", where, f"{said} is the first that is not finite", remedy=remedy, cause=cause)]


def _finite(value: Tensor) -> bool:
    if not value.numel():
        return True
    # The extremes are not finite when any value is not; unlike a mask of them they take no memory.
    low, high = torch.aminmax(value.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _first(setting: Setting) -> tuple[str, str]:
    """Return the module and the value, with its line, from which on what is not finite reaches the answer.

    A mask of minus infinity is none: the softmax behind it makes numbers of it.
    """
    found: list[Site] = []

    def note(value: Tensor, site: Site | None) -> None:
        if site is not None and value.is_floating_point() and value.numel():
            if bool(value.isnan().any()) or float(value.detach().double().amax()) == math.inf:
                found.append(site)
                raise Stop

    tape, _ = setting.run(note=note)
    if not found:
        return "model", "the output"
    site = found[0]
    visit = tape.turns[site]
    name = site.module or "model"
    return name, f"the result of `{site.op}` in `{name}`{f' at {site}' if site.file else ''}, visit {visit},"
