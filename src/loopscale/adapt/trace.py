"""Find the branches by tracing the additions of one forward pass, when no known family has these names.

An addition a + b belongs to the stream when b was computed from a (or both from the stream, as in parallel branches),
and the update b comes from the output of a module by linear steps alone. That module is the branch.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopscale.adapt.branches import Branch, layer_of
from loopscale.adapt.verify import evaluating
from loopscale.probe.batch import call_model
from loopscale.probe.noting import Given, noting
from loopscale.probe.tape import Node, Tape, tensors_in

ADDITIONS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})
# Steps that are linear in their one tensor that depends on the batch, whatever else they read.
LINEAR = frozenset(
    "dropout dropout_ reshape view view_as reshape_as permute transpose transpose_ swapaxes movedim flatten "
    "unflatten squeeze unsqueeze contiguous to type type_as float half bfloat16 double clone roll pad __getitem__ "
    "expand expand_as neg __neg__ narrow chunk split index_select mul __mul__ __rmul__ mul_ __imul__ multiply div "
    "__truediv__ div_ true_divide feature_dropout requires_grad_ detach alias".split()
)

# Steps that pick from their first tensor, and steps that put their last one into their first: routing to experts.
PICKS = frozenset("__getitem__ index_select gather take_along_dim masked_select".split())
PUTS = frozenset("__setitem__ index_add index_add_ index_put index_put_ index_copy_ scatter_add scatter_add_".split())
BLANK = frozenset("zeros zeros_like new_zeros".split())
# How far back a node's ancestors are known, in nodes: a loop of thousands of visits then takes bounded time and memory.
WINDOW = 8192


@dataclass(frozen=True)
class Addition:
    """`skip + update`, made at node `at`; `sources` are the modules whose outputs make the update."""

    at: int
    skip: int
    update: int
    sources: tuple[str, ...]


def by_trace(model: nn.Module, batch: Any) -> list[Branch]:
    """Return the branches seen in one forward pass on `batch`; empty when no addition has a module behind it."""
    tape = Tape(model, batch)
    outputs: dict[int, list[str]] = {}  # of each node, the modules whose (first) output it is, inner ones first

    def note(name: str, module: nn.Module, given: Given, out: Any) -> None:
        tape.after_module(module, given[0], out)
        node = next((tape.node_of(tensor) for tensor in tensors_in(out)), None)
        if node is not None:
            outputs.setdefault(node, []).append(name)

    with evaluating(model), torch.no_grad(), noting(model, note, [name for name, _ in model.named_modules() if name]):
        with tape:
            call_model(model, batch)
    weighted = {name for name, m in model.named_modules() if next(m.parameters(), None) is not None}
    found = _additions(tape.nodes, outputs, weighted)
    group: dict[str, str] = {}
    for addition in found:
        first = next((group[name] for name in addition.sources if name in group), addition.sources[0])
        group.update(dict.fromkeys(addition.sources, first))
    order = [name for name, _ in model.named_modules() if name in group]
    outer = [name for name in order if not any(name.startswith(f"{other}.") for other in order)]
    return [Branch(name, layer_of(model, name), None, group[name]) for name in outer]


def _additions(nodes: list[Node], outputs: dict[int, list[str]], weighted: set[str]) -> list[Addition]:
    before = _ancestors(nodes)
    stream: set[int] = set()
    marks = 0  # the stream as bits: bit i is node i
    found: list[Addition] = []
    for at, node in enumerate(nodes):
        if node.op not in ADDITIONS or len(node.parents) != 2:
            continue
        for skip, update in (node.parents, node.parents[::-1]):
            low = max(update - WINDOW, 0)
            related = before[update] >> skip - low & 1 if skip >= low else 0
            related = related or (skip in stream and before[update] & marks >> low)
            fits = nodes[skip].data and nodes[skip].shape == node.shape and update not in stream
            sources = _sources(nodes, outputs, weighted, update, stream) if related and fits else None
            if sources:
                found.append(Addition(at, skip, update, tuple(sources)))
                stream |= {at, skip}
                marks |= 1 << at | 1 << skip
                break
    nested = _nested(before, found)
    return [one for one in found if one.at not in nested]


def _nested(before: list[int], found: list[Addition]) -> set[int]:
    """Return the additions that happen inside the branch of another one: after its skip and before its update."""
    places = [one.at for one in found]
    inside: set[int] = set()
    for other in found:
        low = max(other.update - WINDOW, 0)
        for at in places[bisect_right(places, max(other.skip, low)) : bisect_right(places, other.update)]:
            reached = at == other.update or before[other.update] >> at - low & 1
            start = max(at - WINDOW, 0)
            if at not in inside and reached and other.skip >= start and before[at] >> other.skip - start & 1:
                inside.add(at)
    return inside


def _ancestors(nodes: list[Node]) -> list[int]:
    """Return for every node i the nodes it was computed from, as bits: bit 0 is node max(i - WINDOW, 0)."""
    before: list[int] = []
    for at, node in enumerate(nodes):
        bits, low = 0, max(at - WINDOW, 0)
        for parent in node.parents:
            start = max(parent - WINDOW, 0)
            bits |= (before[parent] | 1 << parent - start) >> low - start if parent >= low else 0
        before.append(bits)
    return before


def _sources(
    nodes: list[Node], outputs: dict[int, list[str]], weighted: set[str], at: int, stream: set[int]
) -> list[str] | None:
    """Return the outermost modules whose outputs make this node by linear steps; None when something else comes between."""
    while at not in stream:
        named = [name for name in outputs.get(at, []) if name in weighted]
        if named:
            return [named[-1]]
        node = nodes[at]
        if node.op in BLANK:
            return []
        parents = [parent for parent in dict.fromkeys(node.parents) if nodes[parent].data]
        if node.op.endswith("_as") or node.op in PICKS:  # the other tensors lend a shape or a place only
            parents = parents[:1]
        if node.op in PUTS and len(node.parents) > 1:
            parents = [node.parents[0], node.parents[-1]]
        if node.op in (ADDITIONS | PUTS) and len(parents) == 2:
            sides = [_sources(nodes, outputs, weighted, parent, stream) for parent in parents]
            return None if None in sides else list(dict.fromkeys(name for side in sides if side for name in side))
        if node.op not in LINEAR or len(parents) != 1:
            return None
        at = parents[0]
    return None
