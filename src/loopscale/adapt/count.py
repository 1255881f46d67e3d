"""N and L of a model as one pass shows them: what is visited how often, and how many layers are looped.

They are those of the diagnosis: prelude and coda (visited once), layers that forward never calls, and further modules
that share the weights of one that counts do not count.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from loopscale.adapt.branches import Branch
from loopscale.adapt.verify import Verdict
from loopscale.errors import UserError
from loopscale.probe.tape import storage_key


def counted(
    model: nn.Module, branches: list[Branch], verdict: Verdict, loops: int
) -> tuple[list[Branch], int, str | None]:
    """Return the branches with their visits, L, and what to warn of.

    A model that visits each layer once may be a stack that its
    caller loops: any N goes then, with a warning.

    Raises `UserError` when the pass shows another N than `loops`.
    """
    calls = verdict.visits
    weights = {branch.name: _weights(model.get_submodule(branch.name), branch.name) for branch in branches}
    visits: dict[object, int] = {}
    for name, key in weights.items():
        visits[key] = visits.get(key, 0) + calls[name]
    top = max(visits.values())
    for branch in branches:
        if branch.visits == 1 and 1 < visits[weights[branch.name]]:
            raise UserError(
                f"once= marks {branch.name!r}, and the forward pass visits it {visits[weights[branch.name]]} times: "
                "leave it out of once="
            )
    if top == 1:
        acting = [branch for branch in branches if calls[branch.name]]
        unique = layers_of(model, [replace(b, layer=_layer(model, b, verdict)) for b in acting])
        return branches, unique, _not_looped(model, loops) if loops > 1 else None
    if top != loops:
        most = next(name for name, key in weights.items() if visits[key] == top)
        raise UserError(
            f"you say loops={loops} and the forward pass visits {most!r} {top} times: give loops={top}, or a batch= (a "
            f"dict may hold the model's own number of loops) on which it visits it {loops} times"
        )
    found = [_told(branch, visits[weights[branch.name]], loops) for branch in branches]
    core: dict[str, set[object]] = {}
    for branch in found:
        if branch.visits is None and calls[branch.name]:
            core.setdefault(_layer(model, branch, verdict), set()).add(weights[branch.name])
    return found, len({frozenset(keys) for keys in core.values()}), None


def _layer(model: nn.Module, branch: Branch, verdict: Verdict) -> str:
    """Return what the branch counts for: its layer; itself where its members stand in a list that nobody calls."""
    if isinstance(model.get_submodule(branch.layer), nn.ModuleList):
        return branch.group or branch.name
    return verdict.beside.get(branch.layer, branch.layer)


def _told(branch: Branch, visits: int, loops: int) -> Branch:
    return branch if visits in (0, loops) or branch.visits is not None else replace(branch, visits=visits)


def _not_looped(model: nn.Module, loops: int) -> str:
    return (
        f"the forward pass of {type(model).__name__} visits every layer once and you say loops={loops}: right only if its "
        "caller visits it that often, else give loops=1"
    )


def layers_of(model: nn.Module, branches: list[Branch]) -> int:
    """Return L by names: the layers of the core; of an encoder and a decoder, which have a stream each, the longer's."""
    layers = {branch.layer for branch in branches if branch.visits is None}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        stacks = [layer.rpartition(".")[0] for layer in layers]
        return max(map(stacks.count, stacks), default=1)
    return max(len(layers), 1)


def _weights(module: nn.Module, name: str) -> object:
    """Return what tells a branch's weights from those of others: its largest matrix, whatever module holds it."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    return storage_key(max(matrices, key=lambda matrix: matrix.numel())) if matrices else name
