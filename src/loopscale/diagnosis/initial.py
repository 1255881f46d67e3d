"""Is a depth rule hidden in the weights? Output projections against the other matrices of the loop."""

from __future__ import annotations

import math
from statistics import median

from torch import nn

from loopscale.diagnosis.branches import Branch
from loopscale.diagnosis.loops import FoundLoop
from loopscale.diagnosis.stream import MIXED
from loopscale.probe.tape import storage_key


def init_ratio(model: nn.Module, loop: FoundLoop, branches: tuple[Branch, ...]) -> float | None:
    """Say how much smaller the matrices that write to the stream are; 1 where they are like the others.

    Assumption: initial std is either one number or proportional to 1/sqrt(fan_in); that in which the writing matrices
    agree with each other is taken. The least scaled of them counts, since a depth rule scales all of them.
    """
    writers = {b.where for b in branches if b.kind == "branch"}
    out: list[tuple[float, int]] = []
    rest: list[tuple[float, int]] = []
    for name, parameter in model.named_parameters():
        # A few numbers mix streams side by side: no initialisation of features can be read from them.
        if storage_key(parameter) not in loop.uses or parameter.ndim != 2 or parameter.numel() <= MIXED:
            continue
        transposed = type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        size = float(parameter.detach().float().std()), parameter.shape[0 if transposed else 1]
        (out if name.rpartition(".")[0] in writers else rest).append(size)
    if not out or not rest or any(std == 0 for std, _ in rest):
        return None
    raw = median(std for std, _ in rest)
    fan = median(std * math.sqrt(width) for std, width in rest)
    one = [std / raw for std, _ in out]
    by_fan = [std * math.sqrt(width) / fan for std, width in out]
    spreads = [max(ratios) / max(min(ratios), 1e-30) for ratios in (one, by_fan)]
    if max(spreads) < 1.05 * min(spreads):
        return max(*one, *by_fan)
    return max(one if spreads[0] < spreads[1] else by_fan)
