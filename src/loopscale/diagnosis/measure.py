"""One loop measured: its stream, what its steps did to it, the law of its growth, its loop map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from loopscale.diagnosis.arnoldi import Spectrum, leading_eigenvalues
from loopscale.diagnosis.branches import Branch, measure, rms, wanted
from loopscale.diagnosis.growth import Far, Growth, growth_law
from loopscale.diagnosis.loopmap import LoopMap
from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.setting import Setting
from loopscale.diagnosis.stream import Stream, follow
from loopscale.probe.tape import Tape

# An injection that makes up less than this share of the stream does not tell its law.
SHARE = 0.3
# Work that the products with the Jacobian may take, in weights times rows of tokens times visits, and their number.
WORK, PRODUCTS, LEAST = 2e11, 240, 8


@dataclass(frozen=True)
class Pass:
    """One measured forward pass: the loop, its stream and what its steps did; `ends`: its first and last value."""

    tape: Tape
    loop: FoundLoop
    stream: Stream | None
    branches: tuple[Branch, ...]
    growth: Growth | None
    dtype: str
    far: Far | None = None
    ends: tuple[Tensor, Tensor] | None = None


def main_loop(loops: Sequence[FoundLoop], tape: Tape) -> FoundLoop:
    """Return the loop with most shared weights that has a stream to follow."""
    return next((loop for loop in loops if follow(tape, loop) is not None), loops[0])


def measured_pass(setting: Setting, loop: FoundLoop | None = None, tape: Tape | None = None) -> Pass:
    """Run once to find the loop and once to measure its stream; only the latter where loop and tape are given.

    Raises `LookupError` when nothing is looped at this setting.
    """
    tape = tape or setting.run()[0]
    if loop is None:
        loops = find_loops(setting.model, tape)
        if not loops:
            raise LookupError("not looped at this setting")
        loop = main_loop(loops, tape)
    first = _measured(setting, tape, loop, 0)
    if first.growth is not None and first.growth.norms[-1] <= 1e-6 * max(first.growth.norms):
        # A momentum that is still zero, not the stream.
        second = _measured(setting, tape, loop, 1)
        first = second if second.growth is not None else first
    if first.growth is not None and not any(first.growth.norms):
        return replace(first, growth=None)
    return first


def _measured(setting: Setting, tape: Tape, loop: FoundLoop, rank: int) -> Pass:
    stream = follow(tape, loop, rank)
    if stream is None:
        return Pass(tape, loop, None, (), None, "unknown")
    again, _ = setting.run(keep=wanted(tape, stream), like=tape)
    values = again.values
    for index, root in enumerate(again._roots):
        values.setdefault(index, root)
    # Sizes of complex streams are those of their parts; a complex factor keeps its modulus.
    values = {i: torch.view_as_real(v) if v.is_complex() and tape.nodes[i].data else v for i, v in values.items()}
    if not wanted(tape, stream) <= values.keys():
        return Pass(tape, loop, None, (), None, "unknown")
    branches = tuple(measure(tape, stream, values, setting.factors))
    states = [values[index] for index in stream.states]
    norms = tuple(rms(state) for state in states)
    moved = tuple(rms(s.float() - states[0].float()) if s.shape == states[0].shape else rms(s) for s in states)
    dtype = str(states[0].dtype).removeprefix("torch.")
    seen = Pass(tape, loop, stream, branches, None, dtype, ends=(states[0], states[-1]))
    return replace(seen, growth=_growth(seen, norms, moved))


def _growth(seen: Pass, norms: tuple[float, ...], moved: tuple[float, ...]) -> Growth:
    living = [b for b in seen.branches if b.kind == "branch" and not b.dead]
    large = [b for b in seen.branches if b.kind == "inject" and not b.nested and sum(b.sizes) >= SHARE * norms[-1] > 0]
    means = [sum(b.scale for b in part) / len(part) for part in (living, large) if part]
    time = max(means) * seen.loop.visits if means else None
    whole = norms[0] + sum(b.sizes[0] / b.scale for b in living + large if b.sizes and b.scale > 0)
    growth = growth_law(norms, moved, time, seen.far, whole)
    before, last = (seen.tape.nodes[i].site for i in seen.stream.states[-2:]) if seen.stream else (None, None)
    if before != last and growth_law(norms[:-1], moved[:-1], time, seen.far, whole).law == "exponential":
        return replace(growth, law="exponential")  # the last state stands elsewhere in the visit
    return growth


def with_far_gain(setting: Setting, seen: Pass) -> Pass:
    """Return the same pass, its growth law judged with the knowledge of what a visit does to a large stream."""
    known = replace(seen, far=far_gain(setting, seen))
    if seen.growth is None or known.far is None:
        return known
    return replace(known, growth=_growth(known, seen.growth.norms, seen.growth.moved))


def count_layers(model: nn.Module, loop: FoundLoop, branches: tuple[Branch, ...]) -> int:
    """L: attention branches when there are any (attention and MLP make one layer), else layers with branches, or modules.

    Blocks side by side, of which a visit takes one or a mean, are one layer.
    """
    attention = sum(b.attention for b in branches if b.kind == "branch" and not b.beside)
    if attention:
        return attention
    plain = {_layer(model, b) for b in branches if b.kind == "branch" and not b.beside}
    return max(1, len(plain) or len(loop.modules))


def _layer(model: nn.Module, branch: Branch) -> str:
    """Give the layer of a branch, by the count that `attach` takes; without numbered layers, what makes the addition."""
    from loopscale.adapt.branches import layer_of

    inside = branch.where if branch.where in dict(model.named_modules()) else branch.where.rpartition(".")[0]
    if any(part.isdigit() for part in inside.split(".")[:-1]):
        return layer_of(model, inside)
    return branch.sites[0].module if branch.sites else inside


def far_gain(setting: Setting, seen: Pass) -> Far | None:
    """Return what the visits do to the size of a very large stream; None where that cannot be told."""
    if seen.stream is None or len(seen.stream.states) < 3:
        return None
    _, first, *later = seen.stream.states
    try:
        point = setting.run(keep=frozenset({first}), stop=first, like=seen.tape)[0].values[first]
        large = point * (1e2 if point.dtype == torch.float16 else 1e3)
        if not float(large.abs().max()):  # no direction to scale
            return None
        how = {"keep": frozenset(later), "stop": later[-1], "replace": {first: lambda _: large.clone()}}
        values = setting.run(like=seen.tape, **how)[0].values
        gains = [float(values[node].double().norm() / large.double().norm()) for node in later if node in values]
        return Far(gains[0], gains[-1], len(gains)) if later[0] in values else None
    except (RuntimeError, LookupError, ValueError):
        return None


def last_map(setting: Setting, seen: Pass, products: int | None = None) -> Spectrum | None:
    """Return leading eigenvalues of the map of the last visit, and its largest singular value.

    Places that start at zero beside others that do not, as padding does, are left out: a norm multiplies whatever comes
    to next to nothing, and that expands without end. None where no product is made.
    """
    if seen.stream is None or len(seen.stream.states) < 3:
        return None
    made = LoopMap(setting, seen.tape, seen.stream.states[-2], seen.stream.states[-1])
    if made.point.shape != made.image.shape or not made.point.is_floating_point():
        return None
    most = budget(seen) if products is None else products
    if not most:
        return None
    kept = _begun(seen, made.point)
    spectrum = leading_eigenvalues(lambda v: kept(made.jvp(kept(v))), made.point, most=most)
    return replace(spectrum, singular_value=_singular(made, kept, max(2, min(most // 4, 16))))


def _begun(seen: Pass, point: Tensor) -> Callable[[Tensor], Tensor]:
    """Give what sets a difference to zero at the places where the stream is zero before the first visit."""
    first = seen.ends[0] if seen.ends is not None else point
    empty = (first == 0).all(-1, keepdim=True)
    if first.shape != point.shape or not bool(empty.any()) or bool(empty.all()):
        return lambda v: v
    return lambda v: v.masked_fill(empty, 0)


def budget(seen: Pass) -> int:
    """Say how many products with the Jacobian a diagnosis takes: fewer of a large model, counted and never timed."""
    state = seen.tape.nodes[seen.stream.states[0]] if seen.stream else None
    rows = math.prod(state.shape[:-1]) if state else 1
    work = max(1, seen.loop.size * rows * seen.loop.visits)
    calls = max(1, len(seen.tape.nodes))
    return max(LEAST, min(PRODUCTS, int(WORK / work), 8_000 // calls))


def _singular(made: LoopMap, kept: Callable[[Tensor], Tensor], most: int) -> float | None:
    """Return the largest singular value of the Jacobian, by Lanczos on J^T J; None where no gradient comes back."""
    try:
        square = leading_eigenvalues(
            lambda v: kept(made.vjp(kept(made.jvp(kept(v))))), made.point, most=most, tolerance=1e-2
        )
    except RuntimeError:
        return None
    return math.sqrt(square.radius)
