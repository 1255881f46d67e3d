"""Find the branches by tracing the additions of one forward pass, when no known family has these names.

An addition a + b belongs to the stream when b was computed from a (or both from the stream, as in parallel branches),
and the update b comes from the output of a module by linear steps alone. That module is the branch.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Addition:
    """`skip + update`, made at node `at`; `sources` are the modules whose outputs make the update."""

    at: int
    skip: int
    update: int
    sources: tuple[str, ...]


def by_trace(model: nn.Module, batch: Any) -> list[Branch]:
    """The branches seen in one forward pass on `batch`; empty when no addition has a module behind it."""
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
    found = _additions(tape.nodes, outputs, {name for name, m in model.named_modules() if _has_weights(m)})
    named = dict.fromkeys(name for addition in found for name in addition.sources)
    order = [name for name, _ in model.named_modules() if name in named]
    return [Branch(name, layer_of(model, name)) for name in order if not _inside(name, order)]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _inside(name: str, others: list[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _additions(nodes: list[Node], outputs: dict[int, list[str]], weighted: set[str]) -> list[Addition]:
    before = _ancestors(nodes)
    stream: set[int] = set()
    found: list[Addition] = []
    for at, node in enumerate(nodes):
        if node.op not in ADDITIONS or len(node.parents) != 2:
            continue
        for skip, update in (node.parents, node.parents[::-1]):
            related = before[update] >> skip & 1 or (skip in stream and any(before[update] >> s & 1 for s in stream))
            fits = nodes[skip].data and nodes[skip].shape == node.shape and update not in stream
            sources = _sources(nodes, outputs, weighted, update, stream) if related and fits else None
            if sources:
                found.append(Addition(at, skip, update, tuple(sources)))
                stream |= {at, skip}
                break
    return [one for one in found if not any(_nested(before, one, other) for other in found)]


def _nested(before: list[int], one: Addition, other: Addition) -> bool:
    """Whether `one` happens inside the branch of `other`: after its skip and before its update."""
    after_skip = bool(before[one.at] >> other.skip & 1)
    return after_skip and (one.at == other.update or bool(before[other.update] >> one.at & 1))


def _ancestors(nodes: list[Node]) -> list[int]:
    """For every node the set of the nodes it was computed from, as bits."""
    before: list[int] = []
    for node in nodes:
        bits = 0
        for parent in node.parents:
            bits |= before[parent] | (1 << parent)
        before.append(bits)
    return before


def _sources(
    nodes: list[Node], outputs: dict[int, list[str]], weighted: set[str], at: int, stream: set[int]
) -> list[str] | None:
    """The outermost modules whose outputs make this node by linear steps; None when something else comes between."""
    if at in stream:
        return None
    named = [name for name in outputs.get(at, []) if name in weighted]
    if named:
        return [named[-1]]
    node = nodes[at]
    parents = [parent for parent in dict.fromkeys(node.parents) if nodes[parent].data]
    if node.op.endswith("_as"):  # the second tensor lends its shape only
        parents = parents[:1]
    if node.op in ADDITIONS and len(parents) == 2:
        sides = [_sources(nodes, outputs, weighted, parent, stream) for parent in parents]
        return None if None in sides else [name for side in sides if side for name in side]
    if node.op in LINEAR and len(parents) == 1:
        return _sources(nodes, outputs, weighted, parents[0], stream)
    return None
