"""Measure what the steps of a loop do: scale, update against stream, alignment over visits, dead or absorbed updates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loopscale.diagnosis.setting import Factors
from loopscale.diagnosis.stream import BLENDS, ENTERS, FUSED, SAME, SCATTERS, Step, Stream, learned, strip
from loopscale.probe.tape import HALVES, Key, Site, Tape
from loopscale.probe.walks import ancestors

# Steps that a smaller share of the visits has are left out.
OFTEN = 0.4
# A larger share of a half-precision stream's elements that an addition leaves unchanged is a symptom.
LOST = 0.2
ADDED = ("branch", *ENTERS)
ATTENTION = "multi_head_attention_forward"


@dataclass(frozen=True)
class Branch(Step):
    """One step of the loop at all visits. `scale` is eps as measured: |added| / |branch output|.

    `ratio`: |added| / |stream|, per visit. `cosine`: mean pairwise cosine of the additions over visits.
    `absorbed`: share of the elements that the addition leaves unchanged for want of digits. `learned`: parameters are
    among the factors, as in LayerScale or a gate, or weigh a map of the stream itself. `carry`: the factor on what the
    addition is made to; `decay`: the share of its channels at 1, where it is below 1 by construction, `decay_of`: the
    parameters that it is made of. `factors`: the sizes of those that scale what is added.
    """

    where: str = "model"
    scale: float = 1.0
    sizes: tuple[float, ...] = ()
    ratio: tuple[float, ...] = ()
    cosine: float | None = None
    absorbed: float = 0.0
    dead: bool = False
    decay: float | None = None
    learned: bool = False
    sites: tuple[Site, ...] = ()
    carry: float = 1.0
    decay_of: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()

    @property
    def enters(self) -> bool:
        """Whether it comes from outside the loop, and not from what earlier visits left."""
        return self.kind in ENTERS and not self.nested

    @property
    def line(self) -> str:
        """File and line of the addition, where Python code made it."""
        return next((str(site) for site in self.sites if site.file), "")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": self.kind,
            "where": self.where,
            "scale": self.scale,
            "update_ratio": list(self.ratio),
            "cosine": self.cosine,
            "absorbed": self.absorbed,
            "dead": self.dead,
            "factors": list(self.factors),
            "learned": self.learned,
            "line": self.line,
        }


def wanted(tape: Tape, stream: Stream) -> frozenset[int]:
    """Return the nodes whose values `measure` reads."""
    nodes = set(stream.states)
    for steps in stream.steps:
        for step in steps:
            nodes |= {step.node, step.skip, step.update, step.base}
            if step.kind in ADDED:
                nodes |= {strip(tape.nodes, step.skip)[0], step.begin}
                nodes.update(p for scaling in step.scaled for p in _factors(tape, *scaling))
            for factor in (step.factor, _skip_factor(tape, step)):
                if isinstance(factor, tuple) and factor[0] == "node":
                    nodes.add(factor[1])
    return frozenset(nodes - {-1})


def measure(tape: Tape, stream: Stream, values: dict[int, Tensor], factors: Factors) -> list[Branch]:
    """Measure each step of a visit, in order; visits that lack the step are left out. `factors`: those of this pass."""
    # Steps are matched over the visits by their place in the code, not by the module: shared weights may have several.
    columns: dict[tuple[Any, ...], list[Step]] = {}
    offset: dict[tuple[Any, ...], int] = {}
    for state, steps in zip(stream.states, stream.steps, strict=False):
        turns: Counter[tuple[Any, ...]] = Counter()
        for step in steps:
            place = tuple(tape.nodes[step.node].site or ())[1:]
            key = (*place, turns[place])
            columns.setdefault(key, []).append(step)
            offset[key] = step.node - state
            turns[place] += 1
    # A step that few visits have belongs to an outer loop that turns there, or to a first visit that differs.
    usual = [key for key, column in columns.items() if len(column) >= max(1, OFTEN * len(stream.steps))]
    found = []
    for column in (columns[key] for key in sorted(usual, key=offset.__getitem__)):
        # The second visit tells the kind: in the first, the state and the injected input may be one tensor.
        told = column[min(1, len(column) - 1)]
        alike = [step for step in column if (step.kind, step.nested) == (told.kind, told.nested)]
        found.append(_measure(tape, alike, values, factors))
    return found


def _measure(tape: Tape, column: list[Step], values: dict[int, Tensor], factors: Factors) -> Branch:
    first = column[0]
    where = owner(tape, first.base if first.base >= 0 else first.node)
    if first.kind in ENTERS:
        where = _injected(tape, first) or where
    sites = tuple(dict.fromkeys(site for step in column if (site := tape.nodes[step.node].site) is not None))
    factor = _skip_factor(tape, first) if first.kind in ADDED else first.factor if first.kind == "scale" else None
    decay = _decay(tape, factor, values)
    of = _made_of(tape, factor) if decay else ()
    made = Branch(**vars(first), where=where, learned=first.weighs, sites=sites, decay=decay, decay_of=of)
    if first.kind == "scale":
        return replace(made, scale=_size(values, first.node) / max(_size(values, first.skip), 1e-30))
    if first.kind not in ADDED:
        return made
    added, ratios, scales, absorbed = list[Tensor](), list[float](), list[float](), list[float]()
    stored = _stored(tape, column[-1])
    for step in column:
        update, skip = _update(tape, step, values, factors), values[step.skip]
        size, base = rms(update), _base(tape, step, values)
        if added and not (math.isfinite(size) and math.isfinite(base) and math.isfinite(rms(skip))):
            break
        added.append(update.flatten().double())
        ratios.append(size / rms(skip) if rms(skip) > 0 else math.inf)
        scales.append(size / base if base > 0 else _written(step.factor) * _put(tape, step, step.operand, factors))
        absorbed.append(_absorbed(step, update, values, stored))
    sizes = tuple(rms(update) for update in added)
    dead = all(size <= 1e-9 for size in sizes)
    return replace(
        made,
        scale=sum(scales) / len(scales),
        sizes=sizes,
        ratio=tuple(ratios),
        cosine=None if dead else cosine(added),
        absorbed=sum(absorbed) / len(absorbed),
        dead=dead,
        learned=_learned(tape, first),
        carry=_carry(tape, column[-1], values, factors),
        mixes=column[-1].mixes,
        factors=factors_of(tape, first, values),
    )


def _carry(tape: Tape, step: Step, values: dict[int, Tensor], factors: Factors) -> float:
    """Return the factor that the stream takes on the way to an addition, with the one that this pass puts on it."""
    put = _put(tape, step, step.other, factors)
    before = step.begin if step.mixes else strip(tape.nodes, step.skip)[0]
    if before in (-1, step.skip) or not _size(values, before):
        return put
    return put * _size(values, step.skip) / _size(values, before)


def _put(tape: Tape, step: Step, place: int, factors: Factors) -> float:
    """Return the factor that this pass puts on one of the operands of an addition."""
    site = tape.nodes[step.node].site
    put = factors.get(site) if site is not None else None
    return put[1] if put is not None and put[0] == place >= 0 else 1.0


def factors_of(tape: Tape, step: Step, values: dict[int, Tensor]) -> tuple[float, ...]:
    """Return the sizes of the factors between a branch's output and its addition, one by one."""
    found: list[float] = []
    for index, through in step.scaled:
        node = tape.nodes[index]
        written = [abs(word) for word in node.args if type(word) in (int, float) and word]
        made = [rms(values[p]) for p in _factors(tape, index, through) if p in values]
        own = [rms(p) for p in tape.model.parameters() if node.params and tape.keys.get(id(p)) in node.params]
        sizes = made or own or written
        found += [1 / size if "div" in node.op else size for size in sizes if size]
    return tuple(found)


def _factors(tape: Tape, index: int, through: int) -> list[int]:
    """Return what a call multiplies `through` by."""
    return [p for p in tape.nodes[index].parents if p != through]


@contextmanager
def opened(seen: Any) -> Iterator[tuple[str, ...]]:
    """Set parameters that are zero and alone scale a branch to 1 inside, and give their names; they are put back."""
    tape, steps = seen.tape, [step for steps in (seen.stream.steps if seen.stream else ()) for step in steps]
    scaling = [scaled for step in steps if step.kind == "branch" for scaled in step.scaled]
    made = {tape.nodes[i].params for i, _ in scaling}
    made |= {_last_learned(tape, p) for scaled in scaling for p in _factors(tape, *scaled)}
    # A part of a parameter, picked by number, has a key of its own within that of the whole.
    keys = set().union(*made)
    gates = [(n, p) for n, p in tape.model.named_parameters() if _holds(tape, p, keys) and not bool(p.any())]
    # A gate of a matrix and a bias is 1 by its bias alone.
    gates = [(n, p) for n, p in gates if p.ndim < 2] or gates
    try:
        for _, gate in gates:
            gate.data.fill_(1.0)
        yield tuple(name for name, _ in gates)
    finally:
        for _, gate in gates:
            gate.data.zero_()


def _holds(tape: Tape, parameter: Tensor, keys: set[Key]) -> bool:
    """Say whether one of these is the parameter or a part of it."""
    storage, start, _ = tape.keys.get(id(parameter), (-1, 0, ()))
    return any(key[0] == storage and (key[1] < 0 or start <= key[1] < start + parameter.numel()) for key in keys)


def _last_learned(tape: Tape, index: int) -> frozenset[Key]:
    """Return the parameters that acted last on the way to a value."""
    node = tape.nodes[index]
    while not node.params and len(node.parents) == 1:
        node = tape.nodes[node.parents[0]]
    return node.params


def _size(values: dict[int, Tensor], index: int) -> float:
    return rms(values[index]) if index in values else 0.0


def _injected(tape: Tape, step: Step) -> str:
    """Name the buffer or parameter that is added, where it is one; empty where the input comes from the batch."""
    if step.update != step.skip and tape.nodes[step.update].data:
        return ""
    waiting = [step.node if step.update == step.skip else step.update]
    while waiting:
        node = tape.nodes[waiting.pop()]
        for word in node.args:
            if isinstance(word, tuple) and word and word[0] == "constant" and word[2]:
                return str(word[2])
            if isinstance(word, tuple) and word and word[0] == "param":
                return tape.names[word[1]][0]
        waiting += [p for p in node.parents if not tape.nodes[p].data]
    return "a constant"


def _learned(tape: Tape, step: Step) -> bool:
    """Say whether a factor between the branch's output and the addition is a parameter, or made of one."""
    made = (p for scaled in step.scaled for p in _factors(tape, *scaled))
    return any(tape.nodes[i].params for i, _ in step.scaled) or any(learned(tape.nodes, p) for p in made)


def _base(tape: Tape, step: Step, values: dict[int, Tensor]) -> float:
    if step.base < 0:
        return 0.0
    if tape.nodes[step.node].op.startswith("lerp"):
        return rms(values[step.update].float() - values[step.skip].float())
    if tape.nodes[step.node].op in FUSED:
        added = rms(values[step.node].float() - values[step.skip].float())
        return added * rms(values[step.base]) / max(rms(values[step.update]), 1e-30)
    places = values[step.update].numel() / max(values[step.node].numel(), 1)
    return rms(values[step.base]) * (math.sqrt(places) if tape.nodes[step.node].op in SCATTERS else 1.0)


def _update(tape: Tape, step: Step, values: dict[int, Tensor], factors: Factors) -> Tensor:
    """Return what is added, with the factor that this pass puts on it."""
    node, after = tape.nodes[step.node], values[step.node].float().detach()
    spelt = any(isinstance(word, (int, float)) for word in node.args)
    difference = node.op in BLENDS | SCATTERS or step.update == step.skip
    if step.kind != "join" and (difference or spelt):
        alone = step.kind == "inject" and step.update == step.skip and values[step.skip].shape != after.shape
        update = after if alone else after - values[step.skip].float().detach()
    else:
        update = values[step.update].float()
        update = update.expand_as(after) if step.kind != "join" and update.shape != after.shape else update
    factor = _put(tape, step, step.operand, factors)
    return update if difference or factor == 1.0 else update * factor


def _stored(tape: Tape, step: Step) -> torch.dtype:
    """Return the type in which the visits before handed the stream on, where the sum itself is made in a wider one."""
    node = tape.nodes[step.skip] if step.skip >= 0 else tape.nodes[step.node]
    while node.op in SAME and len(node.parents) == 1 and node.dtype == torch.float32:
        node = tape.nodes[node.parents[0]]
    return node.dtype


def _absorbed(step: Step, update: Tensor, values: dict[int, Tensor], stored: torch.dtype) -> float:
    before, after = values[step.skip], values[step.node]
    if stored in HALVES:
        before, after = before.to(stored), after.to(stored)
    if after.dtype not in HALVES or before.shape != after.shape or before.dtype != after.dtype:
        return 0.0
    moving = update != 0
    lost = (before == after) & moving
    return float(lost.sum()) / max(int(moving.sum()), 1)


def _written(factor: object) -> float:
    return float(factor) if isinstance(factor, (int, float)) else 1.0


def _skip_factor(tape: Tape, step: Step) -> object:
    if step.kind not in ADDED or step.skip < 0 or not tape.nodes[step.skip].data:
        return None
    return strip(tape.nodes, step.skip)[1]


def _decay(tape: Tape, factor: object, values: dict[int, Tensor]) -> float | None:
    """Return the share of channels of a decay on the stream that has come to exactly 1 (to 6 digits).

    A decay is below 1 by construction (exp, sigmoid, ...), or a buffer of which no channel is above 1 and some are between
    0 and 1; a gain that starts at exactly 1 is none, and neither is a mask.
    """
    if isinstance(factor, tuple) and factor[0] == "constant":
        held = dict(tape.model.named_buffers()).get(factor[-1])
        if held is None or not held.is_floating_point() or not ((0 <= held) & (held <= 1)).all():
            return None
        return _at_one(held) if ((held > 0) & (held < 1 - 1e-6)).any() else None
    if not (isinstance(factor, tuple) and factor[0] == "node") or tape.nodes[factor[1]].data:
        return None
    made = {tape.nodes[i].op for i in ancestors(tape.nodes, factor[1], 0)}
    value = values.get(factor[1])
    if value is None or not (value.is_floating_point() or value.is_complex()) or not made & _BELOW_ONE:
        return None
    return _at_one(value.abs() if value.is_complex() else value)


def _at_one(size: Tensor) -> float:
    return float(((size.double() - 1).abs() < 1e-6).double().mean())


def _made_of(tape: Tape, factor: object) -> tuple[str, ...]:
    """Name the parameters that a factor is made of, or the buffer that it is."""
    if isinstance(factor, tuple) and factor[0] == "constant":
        return (str(factor[-1]),)
    keys = tape.nodes[factor[1]].params if isinstance(factor, tuple) and factor[0] == "node" else ()
    return tuple(sorted(tape.names[key][0] for key in keys if key in tape.names))


_BELOW_ONE = frozenset("exp exp2 sigmoid logsigmoid softplus tanh clamp clamp_max minimum rsqrt reciprocal".split())


def owner(tape: Tape, index: int) -> str:
    """Name the module whose parameter last acted on the way to a node."""
    acted = last_acting(tape, index)[1]
    return acted[0].rpartition(".")[0] or acted[0] if acted else "model"


def last_acting(tape: Tape, index: int) -> tuple[int, list[str]]:
    """Return the call by which parameters last acted on the way to a node, and name them.

    In the order of the model: sets have none of their own.
    """
    seen, frontier = set(), [index]
    while frontier:
        current = max(frontier)
        frontier.remove(current)
        node = tape.nodes[current]
        # What the call reads itself comes before what its inputs were made of.
        inherited = {key for p in node.parents if not tape.nodes[p].data for key in tape.nodes[p].params}
        acted = {name for key in node.params - inherited or node.params for name in tape.names.get(key, [])[:1]}
        if acted:
            return current, [name for names in tape.names.values() for name in names if name in acted]
        for parent in node.parents:
            if parent not in seen:
                seen.add(parent)
                frontier.append(parent)
    return index, []


def writers(tape: Tape, branch: Branch) -> list[Key]:
    """Return the matrices that write what a branch adds; of torch's attention, which reads all of its own, the last."""
    if branch.kind != "branch":
        return []
    call, acted = last_acting(tape, branch.base if branch.base >= 0 else branch.node)
    found = [key for key, names in tape.names.items() if names[0] in acted and len(key[2]) == 2]
    return found[-1:] if tape.nodes[call].op == ATTENTION else found


def rms(tensor: Tensor) -> float:
    """Return the root mean square, in double precision."""
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


def cosine(vectors: list[Tensor]) -> float | None:
    """Return the mean pairwise cosine; None for fewer than two non-zero vectors as long as the last."""
    units = [v / v.norm() for v in vectors if float(v.norm()) > 0 and v.shape == vectors[-1].shape]
    if len(units) < 2:
        return None
    stacked = torch.stack(units)
    gram = stacked @ stacked.T
    count = len(units)
    return float((gram.sum() - gram.diagonal().sum()) / (count * (count - 1)))
