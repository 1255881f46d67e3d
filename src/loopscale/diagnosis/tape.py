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

    `graph=True` keeps values with their autograd history. Node numbers repeat from pass to pass on the same batch.
    """

    model: nn.Module
    batch: Any = None
    keep: frozenset[int] = frozenset()
    keep_inputs: frozenset[int] = frozenset()
    replace: Mapping[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    stop: int | None = None
    graph: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.serial = next(_SERIALS)
        self.nodes: list[Node] = []
        self.values: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
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
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name in _SILENT or not isinstance(out, (Tensor, tuple, list)):
            return out
        if name == "__setitem__" or (name == "__set__"):
            return out
        return self._note(name, args, kwargs, out)

    def _note(self, name: str, args: Any, kwargs: Any, out: Any) -> Any:
        made = [out] if isinstance(out, Tensor) else [item for item in out if isinstance(item, Tensor)]
        if not made:
            return out
        sources = [*tensors_in(args), *tensors_in(kwargs)]
        inplace = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or "out" in kwargs
        parents, params, data = self._sources(sources)
        new: dict[int, Tensor] = {}
        for tensor in made:
            if isinstance(tensor, nn.Parameter) or (not inplace and any(tensor is source for source in sources)):
                continue
            index = self._add(name, parents, tensor, data, params, self._spell(args, kwargs))
            replaced = self.replace[index](tensor) if index in self.replace else tensor
            setattr(replaced, _TAG, (self.serial, index))
            if index in self.keep:
                self.values[index] = replaced if self.graph else replaced.detach().clone()
            if index in self.keep_inputs and sources:
                read = next((t for t in sources if self.node_of(t) is not None), sources[0])
                self.inputs[index] = read if self.graph else read.detach()
            if replaced is not tensor:
                new[id(tensor)] = replaced
            if index == self.stop:
                raise Stop
        if not new:
            return out
        return new[id(out)] if isinstance(out, Tensor) else type(out)(new.get(id(item), item) for item in out)

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


_SILENT = frozenset(
    "size dim numel stride is_floating_point is_complex element_size item tolist data_ptr __len__ __bool__ __repr__ "
    "register_hook requires_grad_ backward storage_offset untyped_storage is_contiguous __hash__".split()
)
