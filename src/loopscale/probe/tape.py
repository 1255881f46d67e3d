"""The tape: every torch call of one forward pass in order, what it read and whether it depends on the batch.

The tape sits above autograd, so that a value on it can be replaced and differentiated. It sees plain functions and raw
parameters as well as modules: a loop is found even where no module is called twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_TAG = "_loopscale_node"
# Not id(): a tensor that outlives a tape (a buffer changed in place) must not be taken for one of the next tape.
_SERIALS = count(1)
Key = tuple[int, int, tuple[int, ...]]


class Stop(Exception):
    """Ends a forward pass early."""


@dataclass
class Node:
    """One tensor that a torch call made. `params` are the parameters it read, directly or through pure reshaping."""

    op: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    data: bool
    params: frozenset[Key]
    args: tuple[Any, ...] = ()
    dtype: torch.dtype = torch.float32
    call: int = -1


def storage_key(tensor: Tensor) -> Key:
    """Tell tensors apart by the memory they read, not by name: ties made by any means have one key."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tuple(tensor.shape)


def parameter_names(model: nn.Module) -> dict[Key, list[str]]:
    """All names of every parameter, by storage."""
    names: dict[Key, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(storage_key(parameter), []).append(name)
    return names


def tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dicts and result objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth > 4:
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item, depth + 1)


@dataclass
class Tape(TorchFunctionMode):
    """Records nodes; keeps the values of `keep`, replaces those of `replace`, and stops after `stop`.

    `graph=True` keeps values with their autograd history; with `guard` they are safe from later changes in place.
    `aliases[key]` collects one stand-in for each call that reads a parameter of `alias`, to tell its visits apart.
    Node numbers repeat from pass to pass on the same batch.
    """

    model: nn.Module
    batch: Any = None
    keep: frozenset[int] = frozenset()
    keep_inputs: frozenset[int] = frozenset()
    replace: Mapping[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    stop: int | None = None
    graph: bool = False
    alias: frozenset[Key] = frozenset()
    guard: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.serial = next(_SERIALS)
        self.nodes: list[Node] = []
        self.values: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
        self.aliases: dict[Key, list[Tensor]] = {}
        self.written: dict[int, tuple[Tensor, dict[str, int]]] = {}
        self.call = -1
        self.keys = {id(p): storage_key(p) for p in self.model.parameters()}
        self.names = parameter_names(self.model)
        self.given: dict[int, int] = {}
        self._roots = list(tensors_in(self.batch))
        for tensor in self._roots:
            self.given[id(tensor)] = len(self.nodes)
            self._add("input", (), tensor, True, frozenset(), ())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one torch call and note it."""
        kwargs = kwargs or {}
        given = self._stand_in((args, kwargs)) if self.alias else (args, kwargs)
        out = func(*given[0], **given[1])
        name = getattr(func, "__name__", str(func))
        if name == "__setitem__" and isinstance(args[0], Tensor):
            self._note(name, args, kwargs, args[0])
            self._write(*args)
            return out
        if name in _SILENT or name == "__set__" or not isinstance(out, (Tensor, tuple, list)):
            return out
        return self._note(name, args, kwargs, out)

    def _note(self, name: str, args: Any, kwargs: Any, out: Any) -> Any:
        made = [out] if isinstance(out, Tensor) else [item for item in out if isinstance(item, Tensor)]
        if not made:
            return out
        sources = [*tensors_in(args), *tensors_in(kwargs)]
        inplace = _in_place(name) or "out" in kwargs
        parents, params, data = self._sources(sources)
        if inplace and name != "__setitem__" and made:
            self.written.pop(id(made[0]), None)
        if name == "__getitem__":
            read_back = self._read_back(*args)
            parents, data = ((read_back,), self.nodes[read_back].data) if read_back is not None else (parents, data)
        new: dict[int, Tensor] = {}
        for tensor in made:
            if isinstance(tensor, nn.Parameter) or (not inplace and any(tensor is source for source in sources)):
                continue
            index = self._add(name, parents, tensor, data, params, self._spell(args, kwargs))
            replaced = self._handed_on(index, tensor, inplace)
            setattr(replaced, _TAG, (self.serial, index))
            if index in self.keep_inputs and sources:
                read = next((t for t in sources if self.node_of(t) is not None), sources[0])
                self.inputs[index] = read.detach().clone() if self.guard else read if self.graph else read.detach()
            if replaced is not tensor:
                new[id(tensor)] = replaced
            if index == self.stop:
                raise Stop
        if not new:
            return out
        return new[id(out)] if isinstance(out, Tensor) else type(out)(new.get(id(item), item) for item in out)

    def _write(self, buffer: Tensor, place: Any, value: Any) -> None:
        """Remember what was put where in a buffer, so that reading it back is no more than passing it on."""
        index = self.node_of(value) if isinstance(value, Tensor) else None
        known = self.written.setdefault(id(buffer), (buffer, {}))[1]
        if type(place) is not int:
            known.clear()
        if index is not None:
            known[repr(place)] = index
        elif type(place) is int:
            known.pop(repr(place), None)

    def _read_back(self, buffer: Any, place: Any) -> int | None:
        return self.written[id(buffer)][1].get(repr(place)) if id(buffer) in self.written else None

    def _handed_on(self, index: int, tensor: Tensor, inplace: bool) -> Tensor:
        """What the model goes on with: the value itself, its replacement, or a copy of a kept value that needs guarding."""
        replaced = self.replace[index](tensor) if index in self.replace else tensor
        if replaced is not tensor and inplace:
            # The model holds this very tensor and may never look at what the call returned.
            replaced = tensor.copy_(replaced)
        if index not in self.keep:
            return replaced
        if not self.graph:
            self.values[index] = replaced.detach().clone()
        elif self.guard:
            self.values[index] = replaced.clone()
            return tensor.copy_(self.values[index]) if inplace else self.values[index].clone()
        else:
            self.values[index] = replaced
        return replaced

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            key = self.keys.get(id(value))
            if key not in self.alias:
                return value
            stand_in = value.view_as(value)
            self.aliases.setdefault(key, []).append(stand_in)
            return stand_in
        if isinstance(value, dict):
            return {name: self._stand_in(item) for name, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._stand_in(item) for item in value)
        return value

    def after_module(self, module: nn.Module, args: Any, out: Any) -> None:
        """Note what a module made by calls the tape cannot see (compiled or custom kernels), as one opaque node."""
        for tensor in tensors_in(out):
            hidden = self.node_of(tensor) is None and not isinstance(tensor, nn.Parameter)
            if hidden and tensor.is_floating_point() and not any(tensor is given for given in tensors_in(args)):
                parents, params, data = self._sources([*tensors_in(args), *module.parameters()])
                index = self._add("opaque", parents, tensor, data, params, ())
                setattr(tensor, _TAG, (self.serial, index))
                if index in self.keep:
                    self.values[index] = tensor if self.graph else tensor.detach().clone()
                if index == self.stop:
                    raise Stop

    def node_of(self, tensor: Tensor) -> int | None:
        """The node of a tensor made on this tape, or given in the batch."""
        owner, index = getattr(tensor, _TAG, (0, -1))
        if owner == self.serial:
            return int(index)
        return self.given.get(id(tensor))

    def _sources(self, sources: list[Tensor]) -> tuple[tuple[int, ...], frozenset[Key], bool]:
        parents: list[int] = []
        params: set[Key] = set()
        data = False
        for source in sources:
            index = self.node_of(source)
            if index is not None:
                parents.append(index)
                data = data or self.nodes[index].data
            elif id(source) in self.keys:
                params.add(self.keys[id(source)])
        for index in parents:
            if not self.nodes[index].data:
                params |= self.nodes[index].params
        return tuple(parents), frozenset(params), data

    def _spell(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        return tuple(self._word(item) for item in (*args, *kwargs.values()))

    def _word(self, item: Any) -> Any:
        """How an argument is noted: a node as ("node", i), a parameter by its key, a constant by size, a number as is."""
        if isinstance(item, Tensor):
            index = self.node_of(item)
            if index is not None:
                return ("node", index)
            return ("param", self.keys[id(item)]) if id(item) in self.keys else ("constant", tuple(item.shape))
        if isinstance(item, (list, tuple)) and len(item) < 9:
            return tuple(self._word(part) for part in item)
        return item if isinstance(item, (bool, int, float, str)) else type(item).__name__

    def _add(
        self, op: str, parents: tuple[int, ...], made: Tensor, data: bool, params: frozenset[Key], args: Any
    ) -> int:
        self.nodes.append(Node(op, parents, tuple(made.shape), data, params, args, made.dtype, self.call))
        return len(self.nodes) - 1


def _in_place(name: str) -> bool:
    """Whether a call changes its first argument: `add_`, `__iadd__`, `__setitem__`; `__invert__` is none of them."""
    dunder = name.startswith("__") and name.endswith("__")
    return name in _IN_PLACE if dunder else name.endswith("_")


_IN_PLACE = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ifloordiv__ __ipow__ __imod__ __iand__ __ior__ "
    "__ixor__".split()
)
_SILENT = frozenset(
    "size dim numel stride is_floating_point is_complex element_size item tolist data_ptr __len__ __bool__ __repr__ "
    "register_hook requires_grad_ backward storage_offset untyped_storage is_contiguous __hash__".split()
)
