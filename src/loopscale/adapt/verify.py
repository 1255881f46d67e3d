"""Check on the spot that scaling these branches does what it says, before anything is installed.

scale 1      the output is bit-identical
scale 0      every layer hands its stream on unchanged (Post-LN: its norms alone, no weight of a branch arrives)
scale 1/2    a layer with one branch alone adds half as much: the way from the branch to the stream is linear
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.adapt.branch_hook import scaled
from loopscale.adapt.branches import Branch
from loopscale.errors import UserError, foreign
from loopscale.probe.batch import call_model, first_float
from loopscale.probe.noting import Given, Note, noting
from loopscale.probe.tape import storage_key, tensors_in
from loopscale.probe.untouched import untouched


@dataclass
class Verdict:
    """What the check saw.

    `visits`: calls of each branch in one pass; `beside`: of each layer the first one that reads the same stream (blocks
    of which a visit takes one or a mean); `post_norm`: layers that norm the sum; `layers`: those that were looked at, none
    where the visits are written in the forward of the model itself.
    """

    visits: dict[str, int]
    beside: dict[str, str]
    post_norm: list[str] = field(default_factory=list)
    layers: int = 0


@dataclass
class Call:
    """The first call of a layer: the stream it got and gave, and the arguments to call it again."""

    before: Tensor
    after: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def verify(model: nn.Module, branches: Sequence[Branch], batch: Any) -> Verdict:
    """Run the model on `batch` at scale 1 and 0, and each layer with one branch at a time.

    Raises `UserError` naming the layer and its shapes when a law does not hold. The model is left as it was.
    """
    layers = list(dict.fromkeys(branch.layer for branch in branches))
    scale = dict.fromkeys((branch.name for branch in branches), 1.0)
    with evaluating(model), _probes(model, scale) as seen:
        beside: dict[str, str] = {}
        with noting(model, _beside(beside), layers):
            ours = _run(model, batch)
        verdict = Verdict({name: seen.get(name, 0) for name in scale}, beside)
        _same(ours, _run_without(model, scale, batch))
        if not any(verdict.visits.values()):
            raise UserError(
                f"the model never calls {branches[0].name!r}: name modules that its forward pass runs in branches="
            )
        scale.update(dict.fromkeys(scale, 0.0))
        for layer, call in _calls(model, layers, batch).items():
            own = [b.name for b in branches if b.layer == layer and verdict.visits[b.name]]
            if not layer and call.before.shape != call.after.shape:
                continue  # the whole model, with what leads into the stream and out of it: no layer hands that on
            if _identity(call):
                verdict.layers += 1
                _linear(model, layer, own, call, scale, seen)
            elif not bool(call.after.any()):
                continue  # the whole result of this module is the branch, and what calls it makes the addition
            elif _only_norms(model, layer, call):
                verdict.layers += 1
                verdict.post_norm.append(layer)
            else:
                raise UserError(_not_identity(layer, own, call))
    return verdict


def _beside(found: dict[str, str]) -> Note:
    read: list[tuple[Tensor, int, str]] = []

    def note(name: str, module: nn.Module, given: Given, output: Any) -> None:
        stream = stream_of(given)
        if name not in found and stream is not None:
            # A layer that adds in place hands the same tensor on, changed: its version tells.
            now = 0 if stream.is_inference() else stream._version
            found[name] = next((other for tensor, then, other in read if tensor is stream and then == now), name)
            read.append((stream, now, name))

    return note


def _not_identity(layer: str, own: list[str], call: Call) -> str:
    return (
        f"with strength 0 the layer {layer or 'model'!r} is not the identity: stream {tuple(call.before.shape)} became "
        f"{tuple(call.after.shape)}; something reaches it past {', '.join(map(repr, own))}: "
        "name every module whose output is added to the stream in branches="
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Give evaluation mode, a fixed random state and no cache; all is put back, buffers too."""
    # A cache would join one call of a layer to the next.
    configs = {id(c): c for c in (getattr(m, "config", None) for m in model.modules())}
    caching: list[Any] = [c for c in configs.values() if getattr(c, "use_cache", None) is True]
    with untouched(model):
        try:
            for config in caching:
                config.use_cache = False
            yield
        finally:
            for config in caching:
                config.use_cache = True


@contextmanager
def _probes(model: nn.Module, scale: Mapping[str, float]) -> Iterator[dict[str, int]]:
    """Multiply the output of every branch by its number in `scale`, if any; gives the calls of each."""
    seen: dict[str, int] = {}

    def note(name: str, module: nn.Module, given: Given, output: Any) -> Any:
        seen[name] = seen.get(name, 0) + 1
        try:
            return scaled(output, scale[name]) if name in scale else None
        except UserError as mistake:
            raise UserError(f"{name!r}: {mistake}") from None

    with noting(model, note, list(scale)):
        yield seen


def _run_without(model: nn.Module, scale: dict[str, float], batch: Any) -> Any:
    kept = dict(scale)
    scale.clear()
    try:
        return _run(model, batch)
    finally:
        scale.update(kept)


def _run(model: nn.Module, batch: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return call_model(model, batch)


def _same(scaled_output: Any, output: Any) -> None:
    ours, theirs = first_float(scaled_output), first_float(output)
    if ours is None or theirs is None:
        raise UserError("the model returned no tensor to compare: pass a batch= on which it returns one")
    if not torch.equal(ours.nan_to_num(), theirs.nan_to_num()):
        raise UserError(
            f"two runs of the model with scale 1 differ, {tuple(theirs.shape)}: is it random in evaluation mode? pass a "
            "batch= on which it is not, or check=False"
        )


def _calls(model: nn.Module, layers: list[str], batch: Any) -> dict[str, Call]:
    calls: dict[str, Call] = {}

    def note(name: str, module: nn.Module, given: Given, output: Any) -> None:
        before, after = stream_of(given), stream_of(output)
        if name not in calls and before is not None and after is not None:
            calls[name] = Call(before.clone(), after.clone(), *given)

    with noting(model, note, layers):
        _run(model, batch)
    return {layer: calls[layer] for layer in layers if layer in calls}


def stream_of(value: Any) -> Tensor | None:
    """Return the first floating-point tensor among arguments or results."""
    return next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)


def _identity(call: Call) -> bool:
    same_shape = call.before.shape == call.after.shape
    return same_shape and torch.equal(call.before.nan_to_num(), call.after.to(call.before.dtype).nan_to_num())


def _again(model: nn.Module, layer: str, call: Call) -> Tensor:
    torch.manual_seed(0)
    with (
        torch.no_grad(),
        foreign(f"the layer {layer!r} cannot be called by itself to check its branches (check=False)"),
    ):
        after = stream_of(model.get_submodule(layer)(*_copied(call.args), **_copied(call.kwargs)))
    assert after is not None
    return after.double()


def _copied(value: Any) -> Any:
    """Return arguments anew, for a layer that adds to its stream in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value


def _linear(
    model: nn.Module, layer: str, own: list[str], call: Call, scale: dict[str, float], seen: dict[str, int]
) -> None:
    for name in own:
        added, calls = [], seen[name]
        for value in (1.0, 0.5):
            scale[name] = value
            added.append(_again(model, layer, call) - call.before.double())
        scale[name] = 0.0
        if seen[name] - calls > 2:  # the loop is inside this layer: visits act on each other, and not linearly
            continue
        full, half = added
        gap = float((half - 0.5 * full).norm())
        # Rounding of the stream and of what is added: their sizes times the digits they have.
        digits = torch.finfo(call.before.dtype).eps
        room = 8 * digits * float(call.before.double().norm()) + (1e-3 + 8 * digits) * float(full.norm())
        if gap > room:
            raise UserError(
                f"{name!r} is not a branch of {layer!r}: halving its output does not halve what the layer adds to the "
                f"stream {tuple(call.before.shape)}; a norm or an activation comes after it: name the last module "
                "before the addition in branches="
            )


def _only_norms(model: nn.Module, layer: str, call: Call) -> bool:
    """Say whether no matrix of the layer has any influence at scale 0: what is left are norms of the stream."""
    module = model.get_submodule(layer)
    matrices = [p for p in module.parameters() if p.ndim >= 2 and p.is_floating_point()]
    if call.before.shape != call.after.shape or not matrices:
        return False
    flags = [p.requires_grad for p in matrices]
    try:
        for parameter in matrices:
            parameter.requires_grad_(True)
        torch.manual_seed(0)
        with torch.enable_grad():
            after = stream_of(module(*_copied(call.args), **_copied(call.kwargs)))
            assert after is not None
            weight = torch.randn(after.shape, device=after.device, dtype=after.dtype)
            grads = torch.autograd.grad((after * weight).sum(), matrices, allow_unused=True)
        return not any(grad is not None and bool(grad.any()) for grad in grads)
    finally:
        for parameter, flag in zip(matrices, flags, strict=True):
            parameter.requires_grad_(flag)


def counted(
    model: nn.Module, branches: list[Branch], verdict: Verdict, loops: int
) -> tuple[list[Branch], int, str | None]:
    """Return the branches with their visits, L, and what to warn of; they are counted as the diagnosis counts.

    Prelude and coda (visited once), layers that forward never calls, and further modules that share the weights of one that
    counts do not count. A model that visits each layer once may be a stack that its caller loops: any N goes then, with a
    warning.

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
    """Return a key of a branch's weights: the memory of its largest matrix, whatever module holds it."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    return storage_key(max(matrices, key=lambda matrix: matrix.numel())) if matrices else name
