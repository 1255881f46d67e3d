"""Find the loop: parameters that act more than once in one forward pass, each time on what they made before.

Names: a *use* is one torch call that reads a parameter; a *visit* is one pass through all parameters of a loop.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import prod

from torch import nn

from loopscale.probe.tape import Key, Tape
from loopscale.probe.walks import ancestors, descendants

_ELEMENTWISE = frozenset(
    "add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ mul __mul__ __rmul__ __imul__ mul_ div __truediv__ lerp "
    "addcmul where".split()
)
Group = dict[Key, tuple[int, ...]]
LOOKUPS = frozenset({"embedding", "__getitem__", "index_select", "gather", "embedding_bag"})


@dataclass(frozen=True)
class FoundLoop:
    """A set of parameters visited together. `uses[key]` are node numbers, one for each visit."""

    visits: int
    uses: Group = field(repr=False)
    modules: tuple[str, ...]
    where: str
    order: str
    inside: str | None = None
    by_storage: bool = False

    @property
    def size(self) -> int:
        """Number of shared weights."""
        return sum(prod(key[2]) for key in self.uses)

    @property
    def starts(self) -> tuple[int, ...]:
        """The node at which each visit first uses a parameter."""
        return min(self.uses.values(), key=lambda nodes: nodes[0])

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last node that uses a parameter."""
        return _span(self.uses)

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "visits": self.visits,
            "where": self.where,
            "modules": list(self.modules),
            "order": self.order,
            "inside": self.inside,
            "shared_by_storage": self.by_storage,
            "parameters": self.size,
        }


def find_loops(model: nn.Module, tape: Tape) -> list[FoundLoop]:
    """Return all loops of one forward pass, the one with most shared weights first; empty when nothing is looped.

    A parameter counts when one use depends on the one before: a weight applied to two inputs side by side is no loop.
    """
    chains = {key: chain for key, uses in _uses(tape).items() if len(chain := _by_place(tape, _chain(tape, uses))) > 1}
    # Matrices that only shift or scale (made from a time embedding, a diagonal gate) follow a loop and are none.
    matrices = {
        key: chain
        for key, chain in chains.items()
        if len(key[2]) >= 2 and not all(tape.nodes[i].op in _ELEMENTWISE for i in chain)
    }
    if chains and not matrices and _matrices_within(tape, chains):
        return []  # layers of their own around one norm
    groups = [_by_step(tape, group) for group in _groups(matrices or chains)]
    loops = [_describe(model, tape, group, groups, chains) for group in groups]
    loops = [_nested(loop, loops) for loop in loops]
    return sorted(loops, key=lambda loop: (-loop.size, -loop.visits, loop.starts[0]))


def _matrices_within(tape: Tape, chains: Group) -> bool:
    """Say whether several matrices, none of which comes again, act among these uses."""
    first, last = _span(chains)
    once = (uses[0] for key, uses in _uses(tape).items() if len(key[2]) >= 2 and len(uses) == 1)
    return sum(first <= use <= last for use in once) > 1


def _by_step(tape: Tape, group: Group) -> Group:
    """Keep one use for each step of a loop that uses its weights several times in a step, as integrators do.

    Between the uses of one step a value of the step before lives on, past the use between; and each use stands in a place
    of its own: cycles within cycles come back to theirs.
    """
    starts = min(group.values(), key=lambda chain: chain[0])
    last: dict[int, int] = {}
    for index, node in enumerate(tape.nodes):
        last.update(dict.fromkeys(node.parents, index))
    outlive = [
        (bisect(starts, i) + 1, bisect(starts, last.get(i, 0)) - 1)
        for i in descendants(tape.nodes, starts[0], starts[-1])
    ]
    opened, closed = Counter(a for a, b in outlive if a <= b), Counter(b + 1 for a, b in outlive if a <= b)
    alive = list(accumulate(opened[n] - closed[n] for n in range(len(starts))))
    within = [n for n in range(2, len(starts)) if alive[n]]
    for size in range(2, len(starts) // 2 + 1):
        if within == [n for n in range(2, len(starts)) if n % size] and _apart(tape, starts, size):
            return {key: chain[::size] for key, chain in group.items()}
    return group


def in_turns(tape: Tape, loop: FoundLoop) -> int:
    """Return after how many visits a loop comes back to the same calls, as where one network serves several states."""
    starts = loop.starts
    for size in range(2, len(starts) // 2 + 1):
        if len(starts) % size == 0 and _apart(tape, starts, size):
            return size
    return 1


def _apart(tape: Tape, starts: tuple[int, ...], size: int) -> bool:
    """Say whether each of the uses of a step is followed by calls in places where the others have none."""
    places = [{node.site for node in tape.nodes[a:b]} for a, b in pairwise(starts[: size + 1])]
    return all(place - set().union(*(other for other in places if other is not place)) for place in places)


def _uses(tape: Tape) -> dict[Key, list[int]]:
    """Return nodes that read a parameter together with data, by parameter; looking up rows of an embedding is no use."""
    found: dict[Key, list[int]] = defaultdict(list)
    for index, node in enumerate(tape.nodes):
        # What is made of parameters alone (a transposed weight, a power iteration for its norm) is not yet a use.
        if node.params and node.data and node.op not in LOOKUPS:
            for key in node.params:
                found[key].append(index)
    return found


def _chain(tape: Tape, uses: list[int]) -> tuple[int, ...]:
    """Return the longest greedy run of uses in which each depends on the one before."""
    if len(uses) < 2:
        return tuple(uses)
    chain, wanted, live = [uses[0]], set(uses), ancestors(tape.nodes, len(tape.nodes) - 1, uses[0])
    reached = {uses[0]}
    for index in range(uses[0] + 1, uses[-1] + 1):
        if any(parent in reached for parent in tape.nodes[index].parents):
            if index in wanted:
                chain.append(index)
                reached = {index}
            else:
                reached.add(index)
        elif index in wanted and index in live and chain[-1] not in live and _alike(tape, index, chain[-1]):
            chain[-1] = index  # the same again, of which the answer is made: the first was thrown away
            reached = {index}
    return tuple(chain)


def _alike(tape: Tape, one: int, other: int) -> bool:
    """Say whether two calls read the same values."""
    a, b = tape.nodes[one], tape.nodes[other]
    return a.parents == b.parents and a.call != b.call


def _by_place(tape: Tape, chain: tuple[int, ...]) -> tuple[int, ...]:
    """Keep the uses at one place in the code, where a visit uses the parameter at several: keys and values, A and A^T."""
    places = Counter(tape.nodes[i].site for i in chain)
    most = max(places.values())
    body = [site for site, count in places.items() if count == most]
    return tuple(i for i in chain if tape.nodes[i].site == body[0]) if most > 1 and len(body) > 1 else chain


def _groups(chains: Group) -> list[Group]:
    """Group parameters with the same number of visits whose visits interleave: they belong together."""
    groups: list[Group] = []
    spans: list[tuple[int, int, int]] = []
    for key, chain in sorted(chains.items(), key=lambda item: item[1][0]):
        joined = next(
            (
                i
                for i, (visits, first, last) in enumerate(spans)
                if visits == len(chain) and chain[0] < last and chain[-1] > first
            ),
            None,
        )
        if joined is None:
            groups.append({key: chain})
            spans.append((len(chain), chain[0], chain[-1]))
            continue
        groups[joined][key] = chain
        visits, first, last = spans[joined]
        # Joining goes by the first visits, so that layer-wise loops, which lie one after the other, stay apart.
        spans[joined] = (visits, first, max(last, chain[0]))
    return groups


def _describe(model: nn.Module, tape: Tape, group: Group, groups: list[Group], chains: Group) -> FoundLoop:
    names = [name for key in group for name in tape.names.get(key, [])[:1]]
    visits = _visits(group)
    tops = _top_modules(model, {name for key in chains for name in tape.names.get(key, [])}, set(names))
    shared = any(len(tape.names.get(key, [])) > 1 for key in group)
    order = "layer-wise" if _follows_alike(tape, group, groups) else "stack-wise"
    where = f"{_phrase(tops or tuple(names))}, {visits} visits"
    return FoundLoop(visits, group, tops or tuple(names), where, order, by_storage=shared)


def _follows_alike(tape: Tape, group: Group, groups: list[Group]) -> bool:
    """Say whether a loop of as many visits over weights of the same shapes runs before or after: layer by layer.

    One reads what the other made: a second network on a stream of its own, as a teacher is, is no layer.
    """
    first, last = _span(group)
    shapes = sorted(key[2] for key in group)
    for other in groups:
        begin, end = _span(other)
        alike = sorted(key[2] for key in other) == shapes and _visits(other) == _visits(group)
        if other is group or not alike or not (begin > last or end < first):
            continue
        (_, made), (read, _) = sorted([(first, last), (begin, end)])
        if made in ancestors(tape.nodes, read, made):
            return True
    return False


def _visits(group: Group) -> int:
    return len(next(iter(group.values())))


def _span(group: Group) -> tuple[int, int]:
    return min(chain[0] for chain in group.values()), max(chain[-1] for chain in group.values())


def _top_modules(model: nn.Module, looped: set[str], own: set[str]) -> tuple[str, ...]:
    """Return the largest modules whose matrices are all in the loop; containers are opened into their parts."""
    found: list[str] = []

    def visit(prefix: str, module: nn.Module) -> None:
        matrices = [
            f"{prefix}.{n}".strip(".") for n, p in module.named_parameters(remove_duplicate=False) if p.ndim >= 2
        ]
        container = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        whole = prefix and matrices and all(name in looped for name in matrices) and any(n in own for n in matrices)
        if whole and not (container and len(module._modules) > 0):
            found.append(prefix)
            return
        for name, child in module.named_children():
            visit(f"{prefix}.{name}".strip("."), child)

    visit("", model)
    return tuple(found)


def _phrase(names: tuple[str, ...]) -> str:
    """Shorten `core.0 core.1 core.2` to "modules 0..2 of `core`": whether a module is a layer, a name cannot tell."""
    if len(names) == 1:
        return f"`{names[0]}`"
    stems: dict[str, list[int]] = defaultdict(list)
    rest: list[str] = []
    for name in names:
        stem, _, last = name.rpartition(".")
        if last.isdigit():
            stems[stem].append(int(last))
        else:
            rest.append(name)
    parts = [
        f"modules {min(numbers)}..{max(numbers)} of `{stem or 'model'}`"
        if len(numbers) > 1
        else f"`{stem}.{numbers[0]}`"
        for stem, numbers in stems.items()
    ]
    return ", ".join(parts + [f"`{name}`" for name in rest[:4]]) + (", ..." if len(rest) > 4 else "")


def _nested(loop: FoundLoop, loops: list[FoundLoop]) -> FoundLoop:
    """Name the outer loop of a loop that runs several times within each of its visits."""
    for other in loops:
        spans = other.starts[0] <= loop.starts[-1] and loop.starts[0] <= other.starts[-1]
        if other is not loop and other.visits < loop.visits and spans:
            return replace(loop, inside=other.where)
    return loop
