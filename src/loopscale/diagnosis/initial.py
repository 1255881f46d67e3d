"""Is a depth rule hidden in the weights? Output projections against the other matrices of the loop."""

from __future__ import annotations

import math
from statistics import median

from torch import Tensor, nn

from loopscale.diagnosis.branches import Branch, writers
from loopscale.diagnosis.loops import FoundLoop
from loopscale.diagnosis.stream import MIXED
from loopscale.probe.tape import Key, Tape, storage_key


def init_ratio(model: nn.Module, tape: Tape, loop: FoundLoop, branches: tuple[Branch, ...]) -> float | None:
    """Say how much smaller the matrices that write to the stream are; 1 where they are like the others.

    Assumption: initial std is either one number or proportional to 1/sqrt(fan_in); that in which the writing matrices
    agree with each other is taken. The least scaled of them counts, since a depth rule scales all of them.
    """
    write = {key for branch in branches for key in writers(tape, branch)}
    out: list[tuple[float, int]] = []
    rest: list[tuple[float, int]] = []
    for key, _, matrix in weights(model):
        # A few numbers mix streams side by side: no initialisation of features can be read from them.
        if key not in loop.uses or matrix.ndim != 2 or matrix.numel() <= MIXED:
            continue
        size = float(matrix.detach().float().std()), _fan_in(tape, loop.uses[key][0], matrix)
        (out if key in write else rest).append(size)
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


def weights(model: nn.Module) -> list[tuple[Key, str, Tensor]]:
    """Return the parameters by what tells them apart, and the matrices of those that hold several, by number."""
    named = list(model.named_parameters(remove_duplicate=False))
    parts = [(f"{name}[{i}]", part) for name, p in named if p.ndim > 2 for i, part in enumerate(p)]
    return [(storage_key(p), name, p) for name, p in [*named, *parts]]


def _fan_in(tape: Tape, use: int, matrix: Tensor) -> int:
    """Return the axis of a matrix over which a call sums: as long as the last one of what it is multiplied with."""
    read = [tape.nodes[p].shape[-1] for p in tape.nodes[use].parents if tape.nodes[p].data and tape.nodes[p].shape]
    return next((width for width in read if width in matrix.shape), matrix.shape[1])
