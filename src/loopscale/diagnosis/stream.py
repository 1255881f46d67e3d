"""The residual stream through a loop: its value before each visit, and what each visit does to it, step by step.

A state is the value that one visit hands to the next: made before the visit, read inside it, and no product of another
such value. The path of a visit runs through its dominators: the values that everything from state to state passes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple, TypeGuard

from loopscale.diagnosis.loops import FoundLoop
from loopscale.probe.tape import Node, Tape
from loopscale.probe.walks import ancestors, descendants, dominators

# Additions to some places of the stream only, as routing makes them.
SCATTERS = frozenset("scatter_add scatter_add_ index_add index_add_".split())
ADDS = SCATTERS | frozenset(
    "add __add__ __radd__ __iadd__ add_ sub __sub__ __isub__ sub_ lerp lerp_ addcmul addcmul_".split()
)
# Additions of a product: the first tensor is what they add to.
FUSED = frozenset("addmm addmm_ addbmm addbmm_ baddbmm baddbmm_ addmv addmv_ addr addr_".split())
BLENDS = FUSED | frozenset("lerp lerp_ addcmul addcmul_".split())
# Further inputs beside the stream, added or laid beside it for a matrix to read.
ENTERS = ("inject", "join")
JOINS = frozenset("cat concat concatenate".split())
SCALES = frozenset("mul __mul__ __rmul__ __imul__ mul_ div __truediv__ __itruediv__ div_ true_divide multiply".split())
SAME = frozenset(
    "view_as_real view_as_complex "
    "view reshape to float half bfloat16 type type_as contiguous clone detach dropout unsqueeze squeeze expand flatten "
    "unflatten __getitem__ __get__ transpose permute rearrange identity alias view_as expand_as movedim chunk split "
    "unbind".split()
)
# What mixes several carriers of the stream into one: streams side by side, blends of blocks, a sum over neighbours.
MIXES = frozenset(
    "stack cat concat concatenate sum mean einsum matmul __matmul__ bmm gather where index_select take_along_dim "
    "scatter __setitem__ index_put_ masked_scatter masked_fill".split()
)
_PILES = JOINS | {"stack"}
# A weight of more numbers mixes features or places, not a few streams.
MIXED = 64
DRAWN = frozenset("rand_like randn_like randint_like".split())
NORMS = frozenset("layer_norm rms_norm group_norm normalize instance_norm batch_norm".split())


@dataclass(frozen=True)
class Step:
    """One thing that happens to the stream: kind is branch, inject, join, scale, norm or map.

    `skip` is the operand that carries the stream, `update` what is added (the skip again where a constant is: it has no
    node), `base` the update before its scale; `factor` is how the scale was spelt; `nested` says that the update carries a
    copy of the stream itself, or what earlier visits left of it; `attention` counts attention calls in the branch.
    `operand` and `other` are the places of the update and of the skip among what the call reads; -1 where no factor can be
    put on it. `beside`: an addition that an earlier one does not feed, as in blocks side by side. `weighs`: parameters act
    on the stream itself. `mixes`: between `begin`, the state or the addition before, and `skip` streams are mixed.
    `scaled`: the calls that scale what is added, from `update` back to `base`, each with what it scales.
    """

    kind: str
    node: int
    skip: int = -1
    update: int = -1
    base: int = -1
    factor: object = None
    nested: bool = False
    attention: int = 0
    operand: int = -1
    other: int = -1
    beside: bool = False
    weighs: bool = False
    begin: int = -1
    mixes: bool = False
    scaled: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Stream:
    """`states[n]` is the node of the stream before visit n (the last: after the last visit); steps for each visit."""

    states: tuple[int, ...]
    steps: tuple[tuple[Step, ...], ...]


class Handed(NamedTuple):
    """Which of the values that a loop hands on: the `rank`-th, the largest first, after `every` so many visits."""

    rank: int = 0
    every: int = 1


STREAM = Handed()


def follow(tape: Tape, loop: FoundLoop, which: Handed = STREAM) -> Stream | None:
    """Find the stream of a loop; None when no value passes from visit to visit (the loop is opaque to torch calls).

    A loop may hand on several values: a stream, its momentum, a second state, states that take turns.
    """
    nodes, starts = tape.nodes, loop.starts[:: which.every]
    middle = [_state(nodes, starts, visit, which.rank) for visit in range(1, len(starts))]
    if not middle or any(state is None for state in middle):
        return None
    inner = _at_one_place(nodes, starts, [state for state in middle if state is not None])
    first = _aligned_input(nodes, inner[0], starts)
    states = ([first] if first is not None else []) + inner
    if first is not None:
        states = to_loop_boundary(nodes, loop, states)
    paths = [dominators(nodes, a, b) for a, b in itertools.pairwise(states)]
    last = _last(nodes, starts, states, paths)
    if last is not None:
        states.append(last)
        paths.append(dominators(nodes, states[-2], last))
    made = descendants(nodes, starts[0], len(nodes))
    steps = tuple(tuple(_steps(nodes, path, made)) for path in paths)
    return Stream(tuple(states), steps) if len(states) > 1 else None


def _at_one_place(nodes: list[Node], starts: tuple[int, ...], states: list[int]) -> list[int]:
    """Return the states that stand where the last does, where every visit has one: a last visit hands on less."""
    site = nodes[states[-1]].site
    if all(nodes[state].site == site for state in states):
        return states
    alike = [[i for i in _crossing(nodes, starts, n) if nodes[i].site == site] for n in range(1, len(starts))]
    return [places[-1] for places in alike] if all(alike) else states


def _state(nodes: list[Node], starts: tuple[int, ...], visit: int, rank: int) -> int | None:
    crossing = _crossing(nodes, starts, visit)
    # The first visit has none before it to be carried over from: there the second one tells, by the same place.
    told = 2 if visit == 1 and len(starts) > 2 else visit
    twins = crossing if told == visit else _crossing(nodes, starts, told)
    own = _carried_over(nodes, starts, told, twins) if len(twins) == len(crossing) else set()
    roots: list[int] = []
    below: set[int] = set()
    for place, candidate in enumerate(crossing):
        if candidate not in below or place in own:
            roots.append(candidate)
            below |= descendants(nodes, candidate, starts[visit])
    if len(roots) > 1:
        # After the last visit nothing is made again: there the visit before tells, by the same place.
        seen = visit if visit + 1 < len(starts) else max(visit - 1, 1)
        end = starts[seen + 1] if seen + 1 < len(starts) else min(len(nodes) - 1, 2 * starts[seen] - starts[seen - 1])
        known = roots if seen == visit else _crossing(nodes, starts, seen)
        carry = {nodes[p].site for p in known if _carries(nodes, p, end)}
        roots.sort(key=lambda p: (nodes[p].site not in carry, -prod(nodes[p].shape), -p))
    return roots[rank] if rank < len(roots) else None


def _carries(nodes: list[Node], state: int, end: int) -> bool:
    """Say whether the value made at the same place in the next visit comes of this one past the block."""
    linear = _linear(nodes, state, descendants(nodes, state, end))
    return any(i > state and nodes[i].site == nodes[state].site for i in linear)


def _crossing(nodes: list[Node], starts: tuple[int, ...], visit: int) -> list[int]:
    """Return the values that are made in the visit before and read in this one."""
    before, start = starts[visit - 1], starts[visit]
    end = starts[visit + 1] if visit + 1 < len(starts) else min(len(nodes) - 1, 2 * start - before)
    made = descendants(nodes, before, start - 1) & ancestors(nodes, start, before)
    read = {parent for index in range(start, end + 1) for parent in nodes[index].parents}
    return sorted(p for p in made if p in read and nodes[p].dtype.is_floating_point and nodes[p].shape)


def _carried_over(nodes: list[Node], starts: tuple[int, ...], visit: int, crossing: list[int]) -> set[int]:
    """Return places of values that carry something of the visit before last past every other value handed on.

    A stream that its momentum is added to (v <- f(x, v), x <- x + v) comes from v, and yet is no product of v alone.
    """
    own: set[int] = set()
    if visit < 2:
        return own
    for place, candidate in enumerate(crossing):
        others = {c for c in crossing if c < candidate}
        if others and candidate in descendants(nodes, starts[visit - 2], candidate, others):
            own.add(place)
    return own


def _aligned_input(nodes: list[Node], state: int, starts: tuple[int, ...]) -> int | None:
    """Return what the first visit reads where the second reads its state."""
    end = starts[2] if len(starts) > 2 else min(len(nodes), 2 * starts[1] - starts[0])
    for index in range(state + 1, end):
        if state in nodes[index].parents:
            twin = index - starts[1] + starts[0]
            if 0 <= twin < len(nodes) and nodes[twin].op == nodes[index].op:
                place = nodes[index].parents.index(state)
                if place < len(nodes[twin].parents):
                    found = nodes[twin].parents[place]
                    if found < starts[0] and nodes[found].shape[-1:] == nodes[state].shape[-1:]:
                        return found
    return None


def _last(nodes: list[Node], starts: tuple[int, ...], states: list[int], paths: list[list[int]]) -> int | None:
    """Return the stream after the last visit: where the last visit still does, call by call, what the one before did."""
    if not paths or len(starts) < 2:
        return None
    found, shift = None, starts[-1] - starts[-2]
    for before, index in itertools.pairwise(paths[-1]):
        if index + shift >= len(nodes) or not _same_calls(nodes, before, index, shift):
            break
        found = index + shift
    return found if found is not None and found > states[-1] else None


def _same_calls(nodes: list[Node], before: int, index: int, shift: int) -> bool:
    """Say whether the calls from `before` to `index` are repeated `shift` calls later, each on its twin's result."""
    inside = ancestors(nodes, index, before) & descendants(nodes, before, index)
    for i in inside - {before}:
        node, twin = nodes[i], nodes[i + shift]
        if node.op == twin.op in _PILES:
            continue  # what is kept of all visits is one longer
        if node.op != twin.op or node.shape != twin.shape or len(node.parents) != len(twin.parents):
            return False
        pairs = zip(node.parents, twin.parents, strict=True)
        if any(p in inside and p != before and q != p + shift for p, q in pairs):
            return False
    return True


def to_loop_boundary(nodes: list[Node], loop: FoundLoop, states: list[int]) -> list[int]:
    """Move the states back to where the body of the loop begins: as far as the first visit did what the second did.

    A visit may begin with work on the stream before it uses a matrix: an injection, a decay, a norm. The loop's own
    matrices are never passed, so that a prelude of the same kind as the loop stays outside.
    """
    used = {index for chain in loop.uses.values() for index in chain}
    path, origin, back = dominators(nodes, states[0], states[1]), states[0], 0
    while back + 2 < len(path):
        before, index = path[-2 - back], path[-1 - back]
        inside = ancestors(nodes, index, before) & descendants(nodes, before, index)
        shift = origin - index
        if inside & used - {before}:
            break
        source = _source_of_twin(nodes, before, inside, shift)
        if source is None or nodes[source].shape[-1:] != nodes[before].shape[-1:]:
            break
        origin, back = source, back + 1
        if origin - before != shift:
            break
    if not back:
        return states
    moved = [origin]
    for start, end in itertools.pairwise(states):
        way = dominators(nodes, start, end)
        if len(way) < back + 2:
            return states
        moved.append(way[-1 - back])
    return moved if all(a < b for a, b in itertools.pairwise(moved)) else states


def _source_of_twin(nodes: list[Node], before: int, inside: set[int], shift: int) -> int | None:
    """Return what the twins of these calls read in place of `before`; None unless they are the same calls on one value."""
    sources: set[int] = set()
    for i in inside - {before}:
        if i + shift < 0:
            return None
        node, twin = nodes[i], nodes[i + shift]
        if node.op != twin.op or len(node.parents) != len(twin.parents):
            return None
        for p, q in zip(node.parents, twin.parents, strict=True):
            if p == before:
                sources.add(q)
            elif p in inside and q != p + shift:
                return None
    return sources.pop() if len(sources) == 1 else None


def _steps(nodes: list[Node], path: list[int], made: set[int]) -> list[Step]:
    found: list[Step] = []
    for start, end in itertools.pairwise(path):
        for step in _segment(nodes, start, end):
            begin = found[-1].node if found and found[-1].node <= step.skip else path[0]
            between = ancestors(nodes, step.skip, begin) & descendants(nodes, begin, step.skip) - {begin}
            mixes = any(nodes[i].op in MIXES for i in between)
            found.append(replace(_of_the_past(nodes, path[0], made, step), begin=begin, mixes=mixes))
    return found


def _segment(nodes: list[Node], start: int, end: int) -> list[Step]:
    node, inside = nodes[end], descendants(nodes, start, end)
    carried = [p for p in dict.fromkeys(node.parents) if p in inside]
    beside = [p for p in dict.fromkeys(node.parents) if p not in inside and nodes[p].data]
    if node.op in JOINS and beside:
        places = {word[1]: place for place, word in enumerate(operands(node)) if is_node(word)}
        return [Step("join", end, start, p, operand=places.get(p, -1)) for p in beside]
    if _adds_to(node, inside) or node.op in MIXES or (node.op in SCALES and len(carried) > 1):
        linear = _linear(nodes, start, inside)
        if any(p in linear for p in carried) and end in linear:
            made = _adds(nodes, start, end, linear, inside)
            return made if made or node.op not in SCALES else [_map(nodes, start, end)]
        return [_map(nodes, start, end)]
    if node.op in NORMS or _manual_norm(nodes, start, end, inside):
        return [Step("norm", end, start)]
    if node.op in SAME:
        return []
    if node.op in SCALES and len(carried) == 1:
        place = next((p for p, word in enumerate(node.args) if word == ("node", carried[0])), -1)
        return [Step("scale", end, start, factor=_factor(node, carried[0]), operand=place)]
    return [_map(nodes, start, end)]


def _of_the_past(nodes: list[Node], begin: int, made: set[int], step: Step) -> Step:
    """Tell what comes of earlier visits (`made`) from an input: added as it was it is nested, else a branch of the loop."""
    if step.kind != "inject" or step.update == step.skip or step.update not in made:
        return step
    waiting = [step.update]
    while waiting:
        index = waiting.pop()
        node = nodes[index]
        if index not in made or (node.params and node.op not in SCALES):
            continue
        if index < begin:
            return replace(step, nested=True)
        if node.op in SAME or node.op in SCALES or node.op in MIXES or node.op in ADDS:
            waiting += node.parents
    return replace(step, kind="branch")


def _map(nodes: list[Node], start: int, end: int) -> Step:
    between = ancestors(nodes, end, start) & descendants(nodes, start, end) - {start}
    return Step("map", end, start, weighs=any(nodes[i].params for i in between))


def _manual_norm(nodes: list[Node], start: int, end: int, inside: set[int]) -> bool:
    between = {nodes[i].op for i in inside if start < i <= end}
    return bool(between & {"rsqrt", "norm", "sqrt", "vector_norm", "std", "var"}) and nodes[end].op in SCALES


def _linear(nodes: list[Node], start: int, inside: set[int]) -> dict[int, int]:
    """Return values that carry the stream, reached by adding, scaling, mixing and reshaping, by the number of additions."""
    reached = {start: 0}
    for index in sorted(inside - {start}):
        node = nodes[index]
        known = [p for p in dict.fromkeys(node.parents) if p in reached]
        scaled = node.op in SCALES and len(known) == 1
        # A product with a weight is the branch's own; with anything else it is a mixture of what it reads.
        mixed = node.op in MIXES and all(_small(shape, node) for shape in _weights(nodes, node))
        added = _adds_to(node, reached)
        if known and (node.op in SAME or scaled or mixed or added):
            reached[index] = min(reached[p] for p in known) + added
    return reached


def _weights(nodes: list[Node], node: Node) -> list[tuple[int, ...]]:
    """Shapes of the parameters that a call reads, directly or as something that was made of them."""
    made = [nodes[p] for p in node.parents if not nodes[p].data and nodes[p].params]
    within = {key for parent in made for key in parent.params}
    return [parent.shape for parent in made] + [key[2] for key in node.params if key not in within]


def _small(shape: tuple[int, ...], node: Node) -> bool:
    """Whether a weight of this shape mixes a few streams and leaves their features alone."""
    return prod(shape) <= MIXED and node.shape[-1:] != shape[-1:] and node.shape[-1] not in shape


def _adds(nodes: list[Node], start: int, end: int, linear: dict[int, int], inside: set[int]) -> list[Step]:
    """Return the additions on the way from `start` to `end`, in order.

    Of two operands that both carry the stream the one with fewer additions is the skip; the other is one update as a
    whole (x + block(x), x + eps (block(x) - x)). Where a mixture reads several carriers each is followed.
    """
    found: dict[int, Step] = {}
    waiting, seen, side = [end], {start}, False
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        node = nodes[index]
        skips = [p for p in dict.fromkeys(node.parents) if p in linear]
        if not skips:
            continue
        beside = node.op == "stack" and len(skips) == 1 and any(p in inside for p in node.parents if p not in skips)
        if not (beside or _adds_to(node, linear)) or _gathers(node, linear):
            side = side or len(skips) > 1
            waiting += skips
            continue
        skip = min(skips, key=lambda p: (linear[p], p))
        step = _addition(nodes, start, index, skip, linear, inside)
        if step is not None:
            found[index] = step
        waiting.append(skip)
    steps = [found[index] for index in sorted(found)]
    if not side:
        return steps
    fed = [any(t.node in ancestors(nodes, s.skip, start) for t in steps[:n]) for n, s in enumerate(steps)]
    return [replace(s, beside=n > 0 and not fed[n]) for n, s in enumerate(steps)]


def _addition(
    nodes: list[Node], start: int, index: int, skip: int, linear: dict[int, int], inside: set[int]
) -> Step | None:
    """Return what an addition adds to the stream: a branch of it, an input or a constant; None for a number."""
    node = nodes[index]
    others = [p for p in node.parents if p != skip]
    places = {word[1]: place for place, word in enumerate(operands(node)) if is_node(word)}
    if not others:
        constant = next((p for p, word in enumerate(node.args) if _is_constant(word)), None)
        if constant is None or not prod(nodes[index].shape):
            return None
        return Step("inject", index, skip, skip, -1, None, operand=constant, other=places.get(skip, -1))
    update = max(others, key=lambda p: (p in inside, p))
    if not nodes[update].shape:
        return None
    kind = "branch" if update in inside else "inject"
    base, factor, scaled = strip(nodes, update, inside if update in inside else None)
    attends = _attentions(nodes, start, update, skip) if kind == "branch" else 0
    operand, other = places.get(update, -1), places.get(skip, -1)
    if node.op.startswith("lerp"):
        operand, other = 2, -1
    if node.op in FUSED:
        written = [word for word in node.args if type(word) in (int, float)]
        base, factor = (base, factor) if factor is not None else (-1, written[-1] if written else None)
    scaled = scaled if base >= 0 else ()
    return Step(kind, index, skip, update, base, factor, update in linear, attends, operand, other, scaled=scaled)


def operands(node: Node) -> tuple[object, ...]:
    """Return what a call reads one by one: its arguments, or the tensors of the list that it takes."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, tuple) and first and not isinstance(first[0], str) else node.args


def _adds_to(node: Node, carriers: set[int] | dict[int, int]) -> bool:
    """Say whether this call adds something to one of these values; a product with a bias does not."""
    if node.op in FUSED:
        return bool(node.args) and is_node(node.args[0]) and node.args[0][1] in carriers
    return node.op in ADDS


def _gathers(node: Node, linear: dict[int, int]) -> bool:
    """Say whether parts of the stream are summed into something else, as over neighbours: no addition to the stream."""
    return node.op in SCATTERS and not (node.args and is_node(node.args[0]) and node.args[0][1] in linear)


def is_node(word: Any) -> TypeGuard[tuple[str, int]]:
    """Say whether an argument, as a tape notes it, is a node."""
    return isinstance(word, tuple) and len(word) == 2 and word[0] == "node"


def _is_constant(word: object) -> bool:
    """Say whether this is a buffer, a parameter or another tensor that comes from no call."""
    if not isinstance(word, tuple) or not word:
        return False
    return (word[0] == "constant" and bool(word[1])) or (word[0] == "param" and bool(word[1][2]))


def _attentions(nodes: list[Node], start: int, update: int, skip: int) -> int:
    """Count the attention calls of a branch; those of the branches before it are in the stream that it is added to."""
    reached = ancestors(nodes, update, start) & descendants(nodes, start, update) - ancestors(nodes, skip, start)
    return sum(
        nodes[i].op in ("scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention")
        or (nodes[i].op in ("softmax", "_softmax") and len(nodes[i].shape) == 4)
        for i in reached
    )


def strip(
    nodes: list[Node], index: int, inside: set[int] | None = None
) -> tuple[int, object, tuple[tuple[int, int], ...]]:
    """Go back from a value over scaling, casting and reshaping.

    Gives what was scaled, how the scale was spelt, and the calls that scale, each with what it scales. With `inside`, what
    is made of the stream, a learned factor that is not made of it scales too: a gate that reads a time or a label.
    """
    factor: object = None
    scaled: list[tuple[int, int]] = []
    while True:
        node = nodes[index]
        number = next((word for word in node.args if type(word) in (int, float)), None)
        if node.op in SCALES and not node.parents and number:  # a constant times a number: it has no node of its own
            written = 1 / number if "div" in node.op else number
            return -1, written if factor is None else written * factor if isinstance(factor, float) else factor, ()
        data = [p for p in node.parents if nodes[p].data and not _drawn(nodes, p)] or list(node.parents)[:1]
        if inside is not None and node.op in SCALES and len(data) == 2:
            data = [p for p in data if p in inside or not learned(nodes, p)]
        if node.op in SCALES and len(node.parents) <= 2 and len(data) == 1:
            factor = factor or _factor(node, data[0])
            scaled.append((index, data[0]))
        elif not (node.op in SAME and len(data) == 1 and prod(nodes[data[0]].shape) == prod(node.shape)):
            return index, factor, tuple(scaled)
        index = data[0]


def learned(nodes: list[Node], index: int) -> bool:
    """Say whether parameters act on the way to a value."""
    return any(nodes[i].params for i in ancestors(nodes, index, 0))


def _drawn(nodes: list[Node], index: int) -> bool:
    """Say whether a value is random numbers alone, as a mask is: of the data it has no more than the shape."""
    waiting, left = [index], 16
    while waiting:
        node, left = nodes[waiting.pop()], left - 1
        if node.op in DRAWN or not node.data:
            continue
        if node.params or not node.parents or not left:
            return False
        waiting += node.parents
    return True


def _factor(node: Node, carried: int) -> object:
    others = [word for word in node.args if word != ("node", carried)]
    return others[0] if others else None
