"""One loop measured: its stream, what its steps did to it, the law of its growth, its loop map."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from loopscale.diagnosis.arnoldi import Spectrum, leading_eigenvalues
from loopscale.diagnosis.branches import LOST, Branch, measure, rms, wanted
from loopscale.diagnosis.growth import CONTRACTIVE, GAIN, Far, Growth, growth_law
from loopscale.diagnosis.loopmap import LoopMap
from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.setting import Setting
from loopscale.diagnosis.stream import ENTERS, STREAM, Handed, Stream, follow
from loopscale.probe.tape import Tape

# A loop with fewer weights than the main one's by this factor is not looked at beside it.
BESIDE = 20
# Values handed on from visit to visit that are looked at.
VALUES = 4
# A stream that rises to its last visit is bounded neither where no more than the first share of it is left after the visits
# (what piles up is kept beside it), nor where more than the other is: the carry forgets less than the visits add.
FORGOTTEN, SLOW = 0.1, 1 / math.e
# An injection that makes up less than this share of the stream does not tell its law.
SHARE = 0.3
# Work that the products with the Jacobian may take, in weights times rows of tokens times visits, and their number.
WORK, PRODUCTS, LEAST = 2e11, 240, 8


@dataclass(frozen=True)
class Pass:
    """One measured forward pass: the loop, its stream and what its steps did; `ends`: its first and last value.

    `which` of the values that the loop hands on the stream is.
    """

    tape: Tape
    loop: FoundLoop
    stream: Stream | None
    branches: tuple[Branch, ...]
    growth: Growth | None
    dtype: str
    far: Far | None = None
    ends: tuple[Tensor, Tensor] | None = None
    which: Handed = STREAM

    @property
    def piles_up(self) -> bool:
        """Whether branches make the stream grow beyond its limit."""
        return self.growth is not None and self.growth.beyond and any(b.kind == "branch" for b in self.branches)


def main_loop(loops: Sequence[FoundLoop], tape: Tape, visits: int | None = None) -> FoundLoop:
    """Return the loop with most shared weights that has a stream to follow.

    `visits`: what is known to set N gives. A loop that makes them while the main one takes turns, as experts by visit do,
    is the main one.
    """
    known = [loop for loop in loops if follow(tape, loop) is not None] or list(loops)
    main = known[0]
    (begin, end), more = main.span, [loop for loop in known if loop.visits == visits and loop.visits > main.visits]
    within = (loop for loop in more if loop.span[0] < end and loop.span[1] > begin and loop.size * BESIDE >= main.size)
    return next(within, main)


def measured_pass(
    setting: Setting,
    loop: FoundLoop | None = None,
    tape: Tape | None = None,
    which: Handed | None = None,
    visits: int | None = None,
) -> Pass:
    """Run once to find the loop and once to measure its stream; only the latter where loop and tape are given.

    `visits` is for `main_loop`. Raises `LookupError` when nothing is looped at this setting.
    """
    tape = tape or setting.run()[0]
    if loop is None:
        loops = find_loops(setting.model, tape)
        if not loops:
            raise LookupError("not looped at this setting")
        loop = main_loop(loops, tape, visits)
    first = _measured(setting, tape, loop, which or STREAM)
    if which is None and first.growth is not None and first.growth.norms[-1] <= 1e-6 * max(first.growth.norms):
        # A momentum that is still zero, not the stream.
        second = _measured(setting, tape, loop, Handed(1))
        first = second if second.growth is not None else first
    if first.growth is not None and not any(first.growth.norms):
        return replace(first, growth=None)
    return first


def again(setting: Setting, seen: Pass) -> Pass | None:
    """Measure the same stream of the same loop at another setting; None where the model does not run so.

    A size that the model takes from a value, as routing does, may have to change with the value.
    """
    found = None
    for way in (setting, replace(setting, free=True)) if setting.factors else (setting,):
        try:
            found = measured_pass(way, seen.loop, seen.tape, seen.which)
        except (LookupError, RuntimeError, ValueError):
            continue
        if found.growth is not None:
            break
    return found


def anew(setting: Setting, seen: Pass, visits: int) -> Pass:
    """Find the loop anew where it makes so many visits, and measure the same stream of it: that at the same place.

    Raises `LookupError` where there is none.
    """
    if seen.which == STREAM or seen.stream is None:
        return measured_pass(setting, visits=visits)
    tape, _ = setting.run()
    loop, site = main_loop(find_loops(setting.model, tape), tape, visits), seen.tape.nodes[seen.stream.states[-1]].site
    ways = [seen.which, *(seen.which._replace(rank=rank) for rank in range(VALUES))]
    streams = ((which, follow(tape, loop, which)) for which in ways)
    for which, stream in streams:
        if stream is not None and tape.nodes[stream.states[-1]].site == site:
            return measured_pass(setting, loop, tape, which)
    raise LookupError("the stream is not handed on at this setting")


def carried(setting: Setting, loop: FoundLoop, tape: Tape, every: int = 1) -> list[Pass]:
    """Measure what the loop hands on after `every` so many visits: the stream, then other values that pile up.

    The stream is the largest of them, unless another one grows beyond its limit and that does not.
    """
    seen = [with_far_gain(setting, measured_pass(setting, loop, tape, None if every == 1 else Handed(0, every)))]
    for rank in range(VALUES):
        if rank == seen[0].which.rank:
            continue
        try:
            other = _measured(setting, tape, loop, Handed(rank, every))
            other = other if other.stream is None else with_far_gain(setting, other)
        except (RuntimeError, LookupError, ValueError):
            continue
        seen += [other] if other.piles_up else []
    return seen if seen[0].piles_up or len(seen) < 2 else [*seen[1:2], seen[0], *seen[2:]]


def _measured(setting: Setting, tape: Tape, loop: FoundLoop, which: Handed) -> Pass:
    stream = follow(tape, loop, which)
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
    moved = tuple(_moved(state, states[0]) for state in states)
    dtype = str(states[0].dtype).removeprefix("torch.")
    seen = Pass(tape, loop, stream, branches, None, dtype, ends=(states[0], states[-1]), which=which)
    return replace(seen, growth=_growth(seen, norms, moved))


def _common(state: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Give the places that both have: a sequence may grow or shrink from visit to visit."""
    if state.ndim != first.ndim:
        return state, torch.zeros_like(state)
    both = tuple(slice(0, min(a, b)) for a, b in zip(state.shape, first.shape, strict=True))
    return state[both].double(), first[both].double()


def _moved(state: Tensor, first: Tensor) -> float:
    now, before = _common(state, first)
    return rms(now - before)


def _ratio(state: Tensor, first: Tensor) -> float:
    now, before = _common(state, first)
    return rms(now) / (rms(before) or rms(first))


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
    """Return the same pass with what it takes further passes to know: a large stream's fate, what half precision lost."""
    known = replace(seen, far=far_gain(setting, seen))
    if any(b.absorbed > LOST for b in seen.branches) and _keeps(setting, seen):
        known = replace(known, branches=tuple(replace(b, absorbed=0.0) for b in seen.branches))
    if seen.growth is None or known.far is None:
        return known
    kept = known.far.last < FORGOTTEN or (known.far.last > SLOW and seen.growth.gain > GAIN)
    if kept and known.far.contracts and (seen.growth.rises or seen.growth.climbs):
        known = replace(known, far=replace(known.far, last=1.0))
    return replace(known, growth=_growth(known, seen.growth.norms, seen.growth.moved))


def unbounded(seen: Pass) -> Pass:
    """Return the same pass where its stream is known to grow with N: then nothing in it bounds the stream."""
    if seen.growth is None or seen.far is None:
        return seen
    return replace(seen, far=replace(seen.far, last=1.0), growth=replace(seen.growth, law=seen.growth.unbounded))


def _keeps(setting: Setting, seen: Pass) -> bool:
    """Say whether the stream moves as it does in float32: what one addition rounds away may come back in the next."""
    if seen.stream is None or seen.ends is None:
        return False
    first, last = seen.stream.states[0], seen.stream.states[-1]
    try:
        wide = replace(setting, model=copy.deepcopy(setting.model).float())
        values = wide.run(keep=frozenset({first, last}), wide=True, like=seen.tape)[0].values
        exact = values[last].double() - values[first].double()
        moved = seen.ends[1].double() - seen.ends[0].double()
    except (RuntimeError, LookupError, TypeError, ValueError):
        return False
    return rms(moved - exact) <= LOST * rms(exact)


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
        gains = [_ratio(values[node], large) for node in later if node in values]
        if later[0] not in values:
            return None
        far = Far(gains[0], gains[-1], len(gains))
        return far if not far.contracts or _contracts_from_the_start(setting, seen) else replace(far, last=1.0)
    except (RuntimeError, LookupError, ValueError):
        return None


def _contracts_from_the_start(setting: Setting, seen: Pass) -> bool:
    """Say whether a stream that is large from the start shrinks; True where that cannot be told.

    Put in its place at a later visit it may stand against a second value that was made of the small one, which takes it
    back: a rounding error that is carried along.
    """
    if seen.stream is None or seen.ends is None or any(b.kind in ENTERS for b in seen.branches):
        return True
    start, end = seen.stream.states[0], seen.stream.states[-1]
    if seen.tape.nodes[start].op == "input" or not bool(seen.ends[0].any()):
        return True
    large = 1e3 * seen.ends[0]
    values = setting.run(keep=frozenset({end}), stop=end, replace={start: lambda _: large.clone()}, like=seen.tape)[
        0
    ].values
    return end not in values or rms(values[end]) < CONTRACTIVE * rms(large)


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
