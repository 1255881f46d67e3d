"""Make K layers of a stack into L: the first of each group stays, as it is or with the group's mean weights.

Layer i of the core stands for the layers start + i, start + i + L, start + i + 2L, ...: those it would be at visits 1,
2, 3. Every change is noted and can be taken back bit by bit.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from loopscale.adapt.shorten_config import shorten
from loopscale.adapt.undo import Undo
from loopscale.errors import UserError, nearest

TIES = ("first", "average")


def tie(model: nn.Module, stack: tuple[str, nn.ModuleList], span: tuple[int, int, int], how: str, undo: Undo) -> None:
    """Leave L of the layers start..stop-1 in the stack (`span`: start, stop, L), and say so in the model's config.

    Raises `UserError` when K is no multiple of L, for an unknown tie, when layers that shall be one differ in shape, or
    when no field of the config holds the number of layers of this stack.
    """
    name, holder = stack
    start, stop, layers = span
    count = stop - start
    if how not in TIES:
        raise UserError(f"unknown tie {how!r}: {nearest(str(how), TIES)}")
    if not 1 <= layers <= count or count % layers:
        raise UserError(f"layers={layers} must divide the {count} layers {start}..{stop - 1} that become the core")
    if layers == count:
        return
    members = list(holder)
    groups = [[start + place + turn * layers for turn in range(count // layers)] for place in range(layers)]
    for group in groups:
        for other in group[1:]:
            _same_shapes(members[group[0]], members[other], group[0], other)
    if how == "average":
        for group in groups:
            _average([members[index] for index in group], undo)
    kept = members[:start] + members[start : start + layers] + members[stop:]
    gone = set(range(start + layers, stop))
    undo.steps.append(partial(_fill, holder, members))
    _fill(holder, kept)
    _renumber(kept, undo)
    try:
        shorten(model, name, len(members), gone, undo)
    except BaseException:
        undo.run()
        raise


def _same_shapes(one: nn.Module, other: nn.Module, first: int, second: int) -> None:
    ours = {name: tuple(value.shape) for name, value in one.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in other.state_dict().items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"layers {first} and {second} cannot be tied: {name!r} is {ours.get(name)} in one and "
                f"{theirs.get(name)} in the other; choose a range of equal layers"
            )


def _average(members: list[nn.Module], undo: Undo) -> None:
    columns = zip(*(module.parameters() for module in members), strict=True)
    with torch.no_grad():
        for column in columns:
            target, kept = column[0], column[0].detach().clone()
            mean = torch.stack([p.detach().double() for p in column]).mean(0) if target.is_floating_point() else kept
            target.copy_(mean.to(target.dtype))
            undo.steps.append(partial(_write, target, kept))


def _write(target: Tensor, kept: Tensor) -> None:
    with torch.no_grad():
        target.copy_(kept)


def _fill(stack: nn.ModuleList, modules: list[nn.Module]) -> None:
    stack._modules.clear()
    stack._modules.update({str(place): module for place, module in enumerate(modules)})


def _renumber(kept: list[nn.Module], undo: Undo) -> None:
    """Attention finds its slot of the cache by `layer_idx`: the coda moves up."""
    for place, layer in enumerate(kept):
        for module in layer.modules():
            for name in ("layer_idx", "layer_id"):
                before = vars(module).get(name)
                if isinstance(before, int) and before != place:
                    setattr(module, name, place)
                    undo.steps.append(partial(setattr, module, name, before))
