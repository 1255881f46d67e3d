"""Gradients visit by visit, from one backward pass: alignment kappa of shared weights, size at every visit.

kappa = |sum_n g_n|^2 / sum_n |g_n|^2, g_n the gradient that visit n deposits: 1 when visits are independent, N when
they are parallel. Of matrix products g_n is not formed: <g_n, g_m> = sum_ts (x_nt . x_ms)(d_nt . d_ms) for inputs x and
output gradients d. Of other calls it is, a few parameters at a time, so that the memory does not grow with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopscale.diagnosis.loops import FoundLoop, Group
from loopscale.diagnosis.stream import Stream
from loopscale.probe.batch import first_float
from loopscale.probe.passes import record
from loopscale.probe.tape import Key, Tape, tensors_in
from loopscale.probe.walks import ancestors

_PRODUCTS = frozenset({"linear", "addmm", "matmul", "__matmul__", "mm", "bmm", "__rmatmul__"})
# Gradients of other calls (convolutions, recurrent cells, torch's own attention) are formed visit by visit, up to this many
# numbers at a time; parameters that need more, or come after this many backward passes, are left out of kappa.
_MOST_FORMED = 20_000_000
_MOST_PASSES = 12
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Gradients:
    """`kappa` over the shared matrices; `by_parameter`; gradient norm of the stream and of the weights at every visit.

    `left_out` names the shared weights whose gradients are too large to be formed visit by visit. `reached`: how many
    visits any gradient reaches, of the `read` ones whose results the answer reads.
    """

    kappa: float | None
    by_parameter: dict[str, float]
    weights: tuple[float, ...]
    stream: tuple[float, ...]
    left_out: tuple[str, ...] = ()
    reached: int | None = None
    read: int = 0


def gradients(model: nn.Module, batch: Any, loop: FoundLoop, stream: Stream | None, like: Tape) -> Gradients:
    """Run one backward pass of a loss: the model's own, cross-entropy on made-up targets, or a random projection."""
    try:
        return _gradients(model, batch, loop, stream, like, guard=False)
    except RuntimeError:  # the model changes in place what a gradient needs: once more with copies
        return _gradients(model, batch, loop, stream, like, guard=True)


def _gradients(
    model: nn.Module, batch: Any, loop: FoundLoop, stream: Stream | None, like: Tape, guard: bool
) -> Gradients:
    names, ops = like.names, [node.op for node in like.nodes]
    uses, formed, beyond = _kinds(loop, ops, {key: found[0] for key, found in names.items()})
    # Without products the calls of one weight tell how far the gradient reaches.
    nodes = frozenset(i for chain in uses.values() or [loop.starts] for i in chain)
    states = frozenset(stream.states if stream else ())
    tape, output = record(
        model,
        batch,
        keep=nodes | states,
        keep_inputs=nodes,
        graph=True,
        alias=frozenset(formed),
        guard=guard,
        like=like,
    )
    loss = pretend_loss(output, batch)
    if loss is None or not loss.requires_grad:
        return Gradients(None, {}, (), ())
    twins = {key: tape.aliases[key] for key, chain in formed.items() if _whole(tape.aliases.get(key), len(chain))}
    groups = _groups({key: math.prod(key[2]) * len(parts) for key, parts in twins.items()})
    beyond += [key for group in groups[_MOST_PASSES:] for key in group]
    groups = groups[:_MOST_PASSES]
    parts = [part for key in (groups[0] if groups else ()) for part in twins[key]]
    deltas, first = _backward(loss, tape, nodes | states, parts, len(groups) > 1)
    # Visits without a gradient (truncated backpropagation) are left out.
    # Those of complex weights too: their products are no real ones.
    seen = {i for i in deltas if i in tape.inputs and not tape.inputs[i].is_complex()}
    reached = {key: [i for i in chain if i in seen] for key, chain in uses.items()}
    most = max((len(chain) for chain in [*reached.values(), *(formed[key] for key in twins)]), default=0)
    grams = {
        key: _gram([_pair(tape.inputs[i], deltas[i]) for i in chain])
        for key, chain in reached.items()
        if len(chain) == most > 1
    }
    told = {n for chain in loop.uses.values() for n, i in enumerate(chain) if i in deltas}
    for key, made, alive in _formed(loss, twins, groups, first, {key: len(formed[key]) for key in twins}):
        told.update(alive)
        if len(formed[key]) == len(set(alive)) == most > 1:
            grams[key] = _formed_gram(made, most)
    total = sum(grams.values(), torch.zeros(most, most, dtype=torch.float64))
    return Gradients(
        _kappa(total) if float(total.trace()) > 0 else None,
        {names[key][0]: _kappa(gram) for key, gram in grams.items() if float(gram.trace()) > 0},
        tuple(math.sqrt(max(float(v), 0.0)) for v in total.diagonal()),
        tuple(float(deltas[i].double().norm()) for i in (stream.states if stream else ()) if i in deltas),
        tuple(sorted(names[key][0] for key in beyond)),
        len(told) or None,
        len(told | _read(tape, output, loop)),
    )


def _read(tape: Tape, output: Any, loop: FoundLoop) -> set[int]:
    """Return the visits that the answer depends on: a halting loop may throw its last result away; all where unknown."""
    ends = [end for tensor in tensors_in(output) if (end := tape.node_of(tensor)) is not None]
    before = {tape.known(i) for end in ends for i in ancestors(tape.nodes, end, 0)}
    return {n for chain in loop.uses.values() for n, i in enumerate(chain) if i in before or not ends}


def _backward(
    loss: Tensor, tape: Tape, nodes: frozenset[int], parts: list[Tensor], again: bool
) -> tuple[dict[int, Tensor], tuple[Tensor | None, ...]]:
    """Run one backward pass: the gradients of kept nodes, by node, and of `parts`; `again`: further passes follow."""
    order = [i for i in sorted(nodes) if i in tape.values and tape.values[i].requires_grad]
    # Tensors, not `get_gradient_edge` or `grad_fn`: torch frees a graph whose nodes Python has looked at by recursion, and
    # one of thousands of visits then overruns the stack (exit 139).
    sought = [*(tape.values[i] for i in order), *parts]
    tape.values.clear()
    found = torch.autograd.grad(loss, sought, allow_unused=True, retain_graph=again)
    return {i: g.detach() for i, g in zip(order, found, strict=False) if g is not None}, found[len(order) :]


def _kinds(loop: FoundLoop, ops: list[str], names: dict[Key, str]) -> tuple[Group, Group, list[Key]]:
    """Give chains of weights used in products alone, of others small enough to be formed, and the weights too large for it.

    They come in the order of their names: a sum depends on its order, and a diagnosis has to be the same every time.
    """
    chains = sorted(loop.uses.items(), key=lambda found: names[found[0]])
    # Of a weight of several matrices, one for each member of an ensemble, the products of each are its own.
    uses = {key: chain for key, chain in chains if len(key[2]) < 3 and all(ops[i] in _PRODUCTS for i in chain)}
    others = {key: chain for key, chain in chains if key not in uses}
    formed = {key: chain for key, chain in others.items() if math.prod(key[2]) * len(chain) <= _MOST_FORMED}
    return uses, formed, [key for key in others if key not in formed]


def _whole(stand_ins: list[Tensor] | None, visits: int) -> bool:
    """Say whether the calls that read a parameter can be shared out evenly among the visits."""
    return bool(stand_ins) and len(stand_ins or ()) % visits == 0 and all(t.requires_grad for t in stand_ins or ())


def _formed(
    loss: Tensor,
    twins: dict[Key, list[Tensor]],
    groups: list[list[Key]],
    first: tuple[Tensor | None, ...],
    visits: dict[Key, int],
) -> Iterator[tuple[Key, list[Tensor], list[int]]]:
    """Return gradients that have to be formed, and the visits they reach: a backward pass for every group after the first.

    A weight that is read twice in a visit and used once (torch's own attention looks before it calls) has one of two.
    """
    for number, group in enumerate(groups):
        flat = [part for key in group for part in twins[key]]
        last = number == len(groups) - 1
        found = torch.autograd.grad(loss, flat, allow_unused=True, retain_graph=not last) if number else first
        rest = iter(found)
        for key in group:
            parts = [next(rest) for _ in twins[key]]
            calls = len(parts) // visits[key]
            yield (
                key,
                [torch.zeros_like(twin) if p is None else p for p, twin in zip(parts, twins[key], strict=True)],
                [n // calls for n, p in enumerate(parts) if p is not None],
            )


def _groups(sizes: dict[Key, int]) -> list[list[Key]]:
    """Return neighbours together as long as their gradients fit in `_MOST_FORMED` numbers."""
    groups: list[list[Key]] = []
    room = 0
    for key, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = _MOST_FORMED
        groups[-1].append(key)
        room -= size
    return groups


def _formed_gram(parts: list[Tensor], visits: int) -> Tensor:
    calls = len(parts) // visits
    visit = [sum(parts[n * calls + 1 : (n + 1) * calls], parts[n * calls]).flatten() for n in range(visits)]
    gram = torch.zeros(visits, visits, dtype=torch.float64)
    width = max(1, _BLOCK // visits)
    for begin in range(0, visit[0].numel(), width):
        stacked = torch.stack([v[begin : begin + width].float() for v in visit])
        gram += (stacked @ stacked.T).double().cpu()
    return gram


def loss_in(output: Any) -> Tensor | None:
    """Return the loss that an output holds, a single number; None where it holds none."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return own if isinstance(own, Tensor) and own.ndim == 0 else None


def tokens_told(value: Tensor, batch: Any) -> Tensor | None:
    """Return the tokens of the batch where the value is their logits; None otherwise."""
    tokens = next((t for t in tensors_in(batch) if not t.is_floating_point() and t.ndim == 2), None)
    if tokens is None or value.ndim != 3 or value.shape[:2] != tokens.shape or value.shape[2] <= int(tokens.max()):
        return None
    return tokens


def _learned(output: Any, otherwise: Tensor) -> Tensor:
    """Return the main tensor among those of an output that have a gradient; `otherwise` where none has."""
    found = first_float(tuple(t for t in tensors_in(output) if t.requires_grad))
    return otherwise if found is None else found


def pretend_loss(output: Any, batch: Any) -> Tensor | None:
    """Return a scalar to differentiate: `output.loss` if there is one, else made up; None when there is no float output."""
    own = loss_in(output)
    if own is not None and own.requires_grad:  # else a placeholder
        return own
    value = first_float(output)
    if value is not None and not value.requires_grad:  # a state handed back for the next call, which is cut off
        value = _learned(output, value)
    if value is None:
        return None
    generator = torch.Generator().manual_seed(2)
    tokens = tokens_told(value, batch)
    if tokens is not None:
        targets = torch.randint(0, value.shape[2], tuple(tokens.shape), generator=generator).to(value.device)
        return F.cross_entropy(value.float().flatten(0, 1), targets.flatten())
    direction = torch.randn(tuple(value.shape), generator=generator).to(value.device)
    return (value.float() * direction).sum() / math.sqrt(max(value.numel(), 1))


def _pair(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    rows_x = x.detach().flatten(0, -2) if x.ndim > 1 else x.detach()[None]
    rows_d = delta.flatten(0, -2) if delta.ndim > 1 else delta[None]
    return rows_x.float(), rows_d.float()


def _gram(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return all <g_n, g_m>; for many rows the gradients x^T d are formed after all, a block of columns at a time."""
    count, (x, d) = len(pairs), pairs[0]
    rows, wide, out = x.shape[0], x.shape[1], d.shape[1]
    gram = torch.zeros(count, count, dtype=torch.float64)
    if count * rows * (wide + out) <= 2 * wide * out:
        for n, (x, d) in enumerate(pairs):
            for m in range(n + 1):
                y, e = pairs[m]
                gram[n, m] = gram[m, n] = float(((x @ y.T) * (d @ e.T)).sum(dtype=torch.float64))
        return gram
    width = max(1, _BLOCK // (count * wide))
    for begin in range(0, out, width):
        formed = torch.stack([(x.T @ d[:, begin : begin + width]).flatten() for x, d in pairs])
        gram += (formed @ formed.T).double().cpu()
    return gram


def _kappa(gram: Tensor) -> float:
    return float(gram.sum() / gram.trace())
