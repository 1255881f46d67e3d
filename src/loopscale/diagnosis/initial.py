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

    Assumption: initial std is one number, or proportional to 1/sqrt(fan_in), or to 1/sqrt(fan_in + fan_out) (Xavier); that
    in which the writing matrices agree with each other is taken, Xavier only where all others agree in it too. The least
    scaled of them counts, since a depth rule scales all of them.
    """
    write = {key for branch in branches for key in writers(tape, branch)}
    out: list[tuple[float, int, int, int]] = []  # std, and what its square is inverse to under each assumption
    rest: list[tuple[float, int, int, int]] = []
    for key, _, matrix in weights(model):
        # A few numbers mix streams side by side: no initialisation of features can be read from them.
        if key not in loop.uses or matrix.ndim != 2 or matrix.numel() <= MIXED:
            continue
        size = float(matrix.detach().float().std()), 1, _fan_in(tape, loop.uses[key][0], matrix), sum(matrix.shape)
        (out if key in write else rest).append(size)
    if not out or not rest or any(std == 0 for std, *_ in rest):
        return None
    one, by_fan, xavier = (
        tuple([row[0] * math.sqrt(row[kind]) for row in rows] for rows in (out, rest)) for kind in (1, 2, 3)
    )
    spreads = [_spread(written) for written, _ in (one, by_fan, xavier)]
    if 1.05 * spreads[2] < min(spreads[:2]) and _spread(xavier[1]) < ALIKE:
        return _least_scaled(*xavier)
    if max(spreads[:2]) < 1.05 * min(spreads[:2]):
        return max(_least_scaled(*one), _least_scaled(*by_fan))
    return _least_scaled(*(one if spreads[0] < spreads[1] else by_fan))


ALIKE = 1.15  # the ratio of sizes that small matrices of one initialisation have by chance


def _least_scaled(written: list[float], others: list[float]) -> float:
    return max(written) / median(others)


def _spread(sizes: list[float]) -> float:
    return max(sizes) / max(min(sizes), 1e-30)


def weights(model: nn.Module) -> list[tuple[Key, str, Tensor]]:
    """Return the parameters by what tells them apart, and the matrices of those that hold several, by number."""
    named = list(model.named_parameters(remove_duplicate=False))
    parts = [(f"{name}[{i}]", part) for name, p in named if p.ndim > 2 for i, part in enumerate(p)]
    return [(storage_key(p), name, p) for name, p in [*named, *parts]]


def _fan_in(tape: Tape, use: int, matrix: Tensor) -> int:
    """Return the axis of a matrix over which a call sums: as long as the last one of what it is multiplied with."""
    read = [tape.nodes[p].shape[-1] for p in tape.nodes[use].parents if tape.nodes[p].data and tape.nodes[p].shape]
    return next((width for width in read if width in matrix.shape), matrix.shape[1])
