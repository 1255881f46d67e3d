"""One loop measured: its stream, what its steps did to it, the law of its growth, its loop map."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from loopscale.diagnosis.arnoldi import Spectrum, leading_eigenvalues
from loopscale.diagnosis.branches import Branch, measure, rms, wanted
from loopscale.diagnosis.growth import Growth, growth_law
from loopscale.diagnosis.loopmap import LoopMap
from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.stream import Stream, follow
from loopscale.probe.passes import record
from loopscale.probe.tape import Tape


@dataclass(frozen=True)
class Pass:
    """One measured forward pass: the loop, its stream and what its steps did."""

    tape: Tape
    loop: FoundLoop
    stream: Stream | None
    branches: tuple[Branch, ...]
    growth: Growth | None
    dtype: str


def main_loop(loops: Sequence[FoundLoop], tape: Tape) -> FoundLoop:
    """The loop with most shared weights that has a stream to follow."""
    return next((loop for loop in loops if follow(tape, loop) is not None), loops[0])


def measured_pass(
    model: nn.Module,
    batch: Any,
    extra: Mapping[str, Any] | None,
    loop: FoundLoop | None = None,
    tape: Tape | None = None,
) -> Pass:
    """Run once to find the loop and once to measure its stream; only the latter where loop and tape are given."""
    tape = tape or record(model, batch, extra)[0]
    if loop is None:
        loops = find_loops(model, tape)
        if not loops:
            raise LookupError("not looped at this setting")
        loop = main_loop(loops, tape)
    first = _measured(model, batch, extra, tape, loop, 0)
    if first.growth is not None and first.growth.norms[-1] <= 1e-6 * max(first.growth.norms):
        # A momentum that is still zero, not the stream.
        second = _measured(model, batch, extra, tape, loop, 1)
        first = second if second.growth is not None else first
    if first.growth is not None and not any(first.growth.norms):
        return replace(first, growth=None)
    return first


def _measured(
    model: nn.Module, batch: Any, extra: Mapping[str, Any] | None, tape: Tape, loop: FoundLoop, rank: int
) -> Pass:
    stream = follow(tape, loop, rank)
    if stream is None:
        return Pass(tape, loop, None, (), None, "unknown")
    again, _ = record(model, batch, extra, keep=wanted(tape, stream), like=tape)
    values = again.values
    for index, root in enumerate(again._roots):
        values.setdefault(index, root)
    if not wanted(tape, stream) <= values.keys():
        return Pass(tape, loop, None, (), None, "unknown")
    branches = tuple(measure(tape, stream, values))
    states = [values[index] for index in stream.states]
    moved = [rms(s.float() - states[0].float()) if s.shape == states[0].shape else rms(s) for s in states]
    growth = growth_law([rms(s) for s in states], moved, _time(loop, branches))
    return Pass(tape, loop, stream, branches, growth, str(states[0].dtype).removeprefix("torch."))


def _time(loop: FoundLoop, branches: tuple[Branch, ...]) -> float | None:
    """N * eps of the strongest kind of addition: about 1 when more visits would not add more."""
    living = [b.scale for b in branches if b.kind == "branch" and not b.dead]
    injected = [b.scale for b in branches if b.kind == "inject" and b.sizes and max(b.sizes) > 0]
    means = [sum(part) / len(part) for part in (living, injected) if part]
    return max(means) * loop.visits if means else None


def with_far_gain(seen: Pass, far: float | None) -> Pass:
    """The same pass, its growth law judged with the knowledge of what a visit does to a large stream."""
    if seen.growth is None or far is None:
        return seen
    time_ = _time(seen.loop, seen.branches)
    return replace(seen, growth=growth_law(seen.growth.norms, seen.growth.moved, time_, far))


def count_layers(loop: FoundLoop, branches: tuple[Branch, ...]) -> int:
    """L: attention branches when there are any (attention and MLP make one layer), else branches or looped modules."""
    attention = sum(b.attention for b in branches if b.kind == "branch")
    if attention:
        return attention
    plain = sum(b.kind == "branch" for b in branches)
    return max(1, plain or len(loop.modules))


def loop_map(model: nn.Module, batch: Any, seen: Pass, seconds: float) -> tuple[float | None, Spectrum | None]:
    """Far gain and leading eigenvalues of the map from the stream after one visit to that after two.

    With no `seconds` the far gain alone, at the cost of two partial passes.
    """
    if seen.stream is None or len(seen.stream.states) < 3:
        return None, None
    start, end = seen.stream.states[1], seen.stream.states[2]
    made = LoopMap(model, batch, seen.tape, start, end)
    far = made.far_gain()
    if made.point.shape != made.image.shape or not seconds:
        return far, None
    begun = time.perf_counter()
    made.jvp(torch.ones_like(made.point))
    spent = time.perf_counter() - begun
    most = 300 if spent < 0.02 else max(8, int(seconds / 2 / max(spent, 1e-6)))
    spectrum = leading_eigenvalues(made.jvp, made.point, most=min(most, 300), seconds=seconds / 2)
    return far, replace(spectrum, singular_value=_singular(made, min(most, 24), seconds / 4))


def _singular(made: LoopMap, most: int, seconds: float) -> float | None:
    """The largest singular value of the Jacobian, by Lanczos on J^T J; None where no gradient comes back."""
    try:
        square = leading_eigenvalues(
            lambda v: made.vjp(made.jvp(v)), made.point, most=most, seconds=seconds, tolerance=1e-2
        )
    except RuntimeError:
        return None
    return math.sqrt(square.radius)
