"""Make K layers of a stack into L: the first of each group stays, as it is or with the group's mean weights.

Layer i of the core stands for the layers start + i, start + i + L, start + i + 2L, ...: those it would be at visits 1,
2, 3. Every change is noted and can be taken back bit by bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.adapt.handle import Undo
from loopscale.errors import UserError, nearest

Field = tuple[Any, str]


def shorten(model: nn.Module, stack: str, total: int, gone: set[int], undo: Undo) -> None:
    """Change the config of a model of transformers whose list `stack` of `total` layers has lost those in `gone`.

    Which field counts which stack is found out by building: `num_layers` is the encoder's in T5 and every layer's in
    others. A plan holds when the model built from the changed config has the lists of layers that this one has.

    Raises `UserError` when no change of it gives this network.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return
    live = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if hasattr(c, "to_dict")}
    for one in [part for top in live.values() for part in _parts(top)]:
        undo.steps.append(partial(_refresh, one, dict(one.__dict__)))
    for plan in _plans(config, stack, total):
        before = [(part, dict(part.__dict__)) for part in _parts(config)]
        _apply(plan, total, gone)
        built = _built(model)
        if built is not None and _lists(built) == _lists(model):
            _follow(model, built, total)
            return
        for part, values in before:
            _refresh(part, values)
    raise UserError(
        f"no field of the config of {type(model).__name__} counts the {total} layers of {stack!r} alone, so the shorter "
        "model could not be saved: leave layers= out"
    )


def _parts(config: Any) -> Iterator[Any]:
    """Return the config and those inside it (text_config, vision_config)."""
    yield config
    for value in list(config.__dict__.values()):
        if hasattr(value, "to_dict") and value is not config:
            yield from _parts(value)


def _plans(config: Any, stack: str, total: int) -> Iterator[tuple[Field, ...]]:
    """Yield sets of fields to shorten, small ones first, those named like the stack (decoder, text) before others."""
    words = [word for word in stack.replace("_", ".").split(".") if word]

    def fits(field: Field) -> bool:
        return not any(word in field[1] for word in words if word not in ("layers", "layer", "block", "blocks"))

    fields = [
        (part, name)
        for part in _parts(config)
        for name, value in part.__dict__.items()
        if type(value) is int and value == total and any(word in name for word in ("layer", "depth", "block"))
    ]
    fields.sort(key=fits)
    for size in range(1, len(fields) + 1):
        yield from combinations(fields, size)


def _apply(plan: tuple[Field, ...], total: int, gone: set[int]) -> None:
    for part, name in plan:
        values = part.__dict__
        values[name] = total - len(gone)
        for key, value in list(values.items()):
            if _per_layer(key, value, total):
                values[key] = type(value)(item for place, item in enumerate(value) if place not in gone)
        stages = values.get("stage_names") or []
        if len(stages) == total + 1:  # of a backbone: the stem and a stage for each layer
            left = stages[: 1 + total - len(gone)]
            features = [stage for stage in values.get("_out_features") or [] if stage in left] or left[-1:]
            places = [left.index(stage) for stage in features]
            values |= {"stage_names": left, "_out_features": features, "_out_indices": places}


def _per_layer(key: str, value: Any, total: int) -> bool:
    """Say whether this is a list with an entry for each layer (`layer_types`), and not two limits or a list of tokens."""
    return isinstance(value, (list, tuple)) and len(value) == total and ("layer" in key or "block" in key)


def _built(model: nn.Module) -> Any:
    """Return a model of this class built from its config, without weights where that goes; None when it cannot be built."""
    for device in ("meta", "cpu"):
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device(device):
                    return type(model)(copy.deepcopy(model.config))
            except Exception:  # a constructor may raise anything at all
                continue
    return None


def _lists(model: nn.Module) -> dict[str, int]:
    return {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _follow(model: nn.Module, built: nn.Module, total: int) -> None:
    """Give the configs of the parts, which may be copies, the numbers that they have in the model built."""
    there = dict(built.named_modules())
    for name, module in model.named_modules():
        ours, theirs = getattr(module, "config", None), getattr(there.get(name), "config", None)
        if not hasattr(ours, "to_dict") or not hasattr(theirs, "to_dict"):
            continue
        for key, value in list(ours.__dict__.items()):
            if ((type(value) is int and value == total) or _per_layer(key, value, total)) and key in theirs.__dict__:
                ours.__dict__[key] = copy.copy(theirs.__dict__[key])


def _refresh(config: Any, before: dict[str, Any]) -> None:
    values: dict[str, Any] = config.__dict__
    values.clear()
    values.update(before)


TIES = ("first", "average")


def tie(model: nn.Module, stack: tuple[str, nn.ModuleList], span: tuple[int, int, int], how: str, undo: Undo) -> None:
    """Leave L of the layers start..stop-1 in the stack (`span`: start, stop, L), and say so in the model's config.

    Raises `UserError` when L does not divide K, for an unknown tie, when layers that shall be one differ in shape, or
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
