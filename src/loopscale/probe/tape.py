"""The tape: every torch call of one forward pass in order, what it read and whether it depends on the batch.

The tape sits above autograd, so that a value on it can be replaced and differentiated. It sees plain functions and raw
parameters as well as modules: a loop is found even where no module is called twice.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loopscale.probe.calls import (
    CASTS,
    DECIDES,
    EXITS,
    PICKS,
    SILENT,
    SPELT,
    VIEWS,
    in_place,
    into_vmap,
    out_of_vmap,
    passes_on,
    told_by_value,
)

_TAG = "_loopscale_node"
# Not id(): a tensor that outlives a tape (a buffer changed in place) must not be taken for one of the next tape.
_SERIALS = count(1)
Key = tuple[int, int, tuple[int, ...]]
# What a pass may note at most: a longer one ends with `TooLong`, before it fills the memory.
MOST_NODES = 200_000


class Stop(Exception):
    """Ends a forward pass early."""


class TooLong(Exception):
    """The pass makes more torch calls than a tape holds."""


class Site(NamedTuple):
    """The place of a call in the code: the module that was running, the file and line of its frame, the operation.

    `at`: where its expression stands, which tells two additions on one line apart. Not the number of the instruction: of
    one call that changes while Python warms up.
    """

    module: str
    file: str
    line: int
    op: str
    at: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        """Spell it as file:line, the file as seen from here or from where packages are installed."""
        _, installed, within = self.file.partition(f"site-packages{os.sep}")
        try:
            shown = within if installed else os.path.relpath(self.file)
        except (OSError, ValueError):  # the working folder is gone, or on another drive
            shown = self.file
        return f"{shown}:{self.line}"


# A site, and how many calls were made there before.
Place = tuple[Site, int]


@dataclass(slots=True)
class Node:
    """One tensor that a torch call made, the `call`-th. `params`: parameters it read, directly or through pure reshaping.

    `turn` counts the nodes of one site: site and turn name the same call in every pass, also where the data decide how
    many calls are made.
    """

    op: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    data: bool
    params: frozenset[Key]
    args: tuple[Any, ...] = ()
    dtype: torch.dtype = torch.float32
    call: int = -1
    site: Site | None = None
    turn: int = 0
    strides: tuple[int, ...] = ()


def storage_key(tensor: Tensor) -> Key:
    """Tell tensors apart by the memory they read, not by name: ties made by any means have one key."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tuple(tensor.shape)


def parameter_names(model: nn.Module) -> dict[Key, list[str]]:
    """Return all names of every parameter, by storage."""
    names: dict[Key, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(storage_key(parameter), []).append(name)
    return names


def tensors_in(value: Any, depth: int = 0) -> list[Tensor]:
    """Return all tensors in nested tuples, lists, dicts and result objects, in order."""
    found: list[Tensor] = []
    _gather(value, depth, found)
    return found


HALVES = (torch.bfloat16, torch.float16)
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, slice})  # what most arguments are


def _gather(value: Any, depth: int, found: list[Tensor]) -> None:
    if type(value) in _PLAIN:
        return
    if isinstance(value, Tensor):
        found.append(value)
    elif depth <= 4 and isinstance(value, (list, tuple)):
        for item in value:
            _gather(item, depth + 1, found)
    elif depth <= 4 and isinstance(value, Mapping):
        for item in value.values():
            _gather(item, depth + 1, found)


@dataclass
class Tape(TorchFunctionMode):
    """Records nodes; keeps the values of `keep`, replaces those of `replace`, and stops after `stop`.

    `graph=True` keeps values with their autograd history; with `guard` they are safe from later changes in place.
    `aliases[key]` collects one stand-in for each call that reads a parameter of `alias`, to tell its visits apart.
    Numbers of nodes given or kept are those of `like`, a tape of the same model, where there is one: calls are matched by
    site and turn, so that a pass that makes other calls (routing) is never read at the wrong one. `factors[site]` is
    (operand, factor): what the call there reads is multiplied first. Calls of `hollow`, whose results do not matter, are
    not made: zeros of the shape that `like` noted stand for them. With `plain` attention runs in the form that
    forward-mode differentiation follows, its result laid out as in `like`. With `wide` what a call makes in half precision
    is float32. `note` is called with each value and its site. `decide` gets the place and the value of what the model's
    code decides by (a halting rule, a step size), and gives what the code is told.
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
    like: Tape | None = None
    factors: Mapping[Site, tuple[int, float]] = field(default_factory=dict)
    plain: bool = False
    most: int = MOST_NODES
    hollow: frozenset[int] = frozenset()
    wide: bool = False
    decide: Callable[[Place, Any], Any] | None = None
    note: Callable[[Tensor, Site | None], None] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.serial = next(_SERIALS)
        self.turns: Counter[Site] = Counter()
        self.sites: dict[Site, Site] = {}
        self.places: dict[Place, int] = {}
        self.decided: dict[Place, Any] = {}
        self.stack: list[str] = []
        self.module_names = {id(module): name for name, module in self.model.named_modules()}
        self.nodes: list[Node] = []
        self.values: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
        self.aliases: dict[Key, list[Tensor]] = {}
        self.written: dict[int, tuple[Tensor, dict[str, int]]] = {}
        self.call = -1
        self.keys = {id(p): storage_key(p) for p in self.model.parameters()}
        self.names = parameter_names(self.model)
        self.buffers = {id(buffer): name for name, buffer in self.model.named_buffers()}
        self.given: dict[int, int] = {}
        self.gone: list[Tensor] = []
        self.views: dict[int, weakref.ref[Tensor]] = {}
        self.back: dict[int, tuple[Tensor, Tensor]] = {}
        self._roots = tensors_in(self.batch)
        self._sites: dict[Any, Site] = {}
        for tensor in self._roots:
            self.given[id(tensor)] = len(self.nodes)
            self._add("input", (), tensor, True, frozenset(), ())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one torch call and note it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", None) or str(func)
        if name in EXITS:
            self.site = self._site(name)
            args = self._come_back(args)
            self.gone += [t for t in args[:1] if isinstance(t, Tensor) and t.ndim and self.node_of(t) is not None]
        if name in DECIDES:
            return self._decided(self._site(name), func(*args, **kwargs))
        if name in SILENT and not (self.alias or self.factors or self.hollow):
            return func(*args, **kwargs)
        self.site = self._site(name)
        if self.gone or self.back:
            here = self.site
            args, self.site = self._come_back(args), here
        if self.factors and self.site in self.factors:
            args = self._scaled(args, *self.factors[self.site])
        empty = self._empty(args) if self.hollow else None
        if empty is not None:
            return self._note(func, name, args, kwargs, empty)
        given = self._stand_in((args, kwargs)) if self.alias else (args, kwargs)
        out = func(*given[0], **given[1])
        if self.wide and isinstance(out, Tensor) and out.dtype in HALVES:
            out = (args[0] if name in CASTS and args[0].is_floating_point() else out).to(torch.float32, copy=True)
        if self.plain and name == "scaled_dot_product_attention" and isinstance(out, Tensor):
            out = self._laid_out(out)
        if name == "__setitem__" and isinstance(args[0], Tensor):
            self._note(func, name, args, kwargs, args[0])
            self._write(*args)
            return out
        if name in SILENT or name == "__set__" or not isinstance(out, (Tensor, tuple, list)):
            return out
        return self._note(func, name, args, kwargs, out)

    def _decided(self, site: Site, value: Any) -> Any:
        """Note a value that torch hands to the model's own code; give that of `decide` instead, where there is one."""
        place = site, self.turns[site]
        self.turns[site] += 1
        self.decided[place] = value if self.decide is None else self.decide(place, value)
        return self.decided[place]

    def _empty(self, args: Any) -> Tensor | None:
        """Give zeros for a call that is not to be made; None where it is."""
        place, node = self._twin()
        if node is None or place not in self.hollow:
            return None
        read = next(iter(tensors_in(args)), None)
        made = torch.zeros(node.shape, dtype=node.dtype, device=None if read is None else read.device)
        return made.new_empty(0).new_empty_strided(node.shape, node.strides).zero_() if node.strides else made

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> Any:
        made = [out] if isinstance(out, Tensor) else [item for item in out if isinstance(item, Tensor)]
        if not made:
            return out
        self.call += 1
        sources = tensors_in(args)
        if kwargs:
            sources += tensors_in(kwargs)
        inplace = in_place(name) or "out" in kwargs
        parents, params, data = self._sources(sources)
        if inplace and name != "__setitem__" and made:
            self.written.pop(id(made[0]), None)
        if name == "__getitem__":
            read_back = self._read_back(*args)
            parents, data = ((read_back,), self.nodes[read_back].data) if read_back is not None else (parents, data)
        new: dict[int, Tensor] = {}
        passed_on = set() if inplace else {id(source) for source in sources}
        spelt = self._spell(args, kwargs)
        if getattr(func, "namespace", "aten") not in ("aten", "prims", "prim"):
            name = told_by_value(made[0], sources)
        picked = not data and len(params) == 1 and name in PICKS
        for tensor in made:
            if id(tensor) in passed_on or (type(tensor) is not Tensor and isinstance(tensor, nn.Parameter)):
                continue
            read = self._picked(tensor, params, args) if picked else params
            index = self._add(name, parents, tensor, data, read, spelt)
            if self.note is not None:
                self.note(tensor, self.site)
            known = self.known(index)
            replaced = self._handed_on(known, tensor, inplace)
            setattr(replaced, _TAG, (self.serial, index))
            if known in self.keep_inputs and sources:
                given = next((t for t in sources if self.node_of(t) is not None), sources[0])
                given = out_of_vmap(given)
                self.inputs[known] = given.detach().clone() if self.guard else given if self.graph else given.detach()
            if name in VIEWS and sources:
                self.views[index] = weakref.ref(sources[0])
            if inplace and name != "__setitem__":
                self._write_through(index)
            if replaced is not tensor:
                new[id(tensor)] = replaced
            if known == self.stop:
                raise Stop
        if not new:
            return out
        return new[id(out)] if isinstance(out, Tensor) else type(out)(new.get(id(item), item) for item in out)

    def _picked(self, part: Tensor, params: frozenset[Key], args: Any) -> frozenset[Key]:
        """Give a part of a parameter that was picked by number a key of its own: w[0] and w[1] are different weights."""
        (whole,) = params
        key = storage_key(part)
        if prod(whole[2]) <= prod(key[2]):
            return params
        names = self.names.get(whole, ["parameter"])
        number: Any = (key[1] - whole[1]) // max(prod(key[2]), 1)
        if key[0] != whole[0]:  # a copy, picked by a tensor of numbers
            number = [t.flatten().tolist() for t in tensors_in(args) if not t.is_floating_point()]
            key = (whole[0], -1 - hash(str(number)) % 2**40, key[2])
        self.names.setdefault(key, [f"{name}[{str(number)[:20]}]" for name in names])
        return frozenset({key})

    def _write(self, buffer: Tensor, place: Any, value: Any) -> None:
        """Remember what was put where in a buffer, so that reading it back is no more than passing it on."""
        index = self.node_of(value) if isinstance(value, Tensor) else None
        if type(place) is not int and self.nodes[-1].parents and self.nodes[self.nodes[-1].parents[0]].data:
            index = None  # a part of a stream: what is left around it is read back too
        known = self.written.setdefault(id(buffer), (buffer, {}))[1]
        if type(place) is not int:
            known.clear()
        if index is not None:
            known[repr(place)] = index
        elif type(place) is int:
            known.pop(repr(place), None)

    def _read_back(self, buffer: Any, place: Any) -> int | None:
        return self.written[id(buffer)][1].get(repr(place)) if id(buffer) in self.written else None

    def _write_through(self, index: int) -> None:
        """Note that what was written into a view in place stands in the tensor that it is a view of."""
        view = self.nodes[index].parents[0] if self.nodes[index].parents else -1
        while view in self.views:
            whole, part = self.views[view](), index
            source = self.nodes[view].parents[0] if self.nodes[view].parents else -1
            if whole is None or self.node_of(whole) != source:
                return
            node = self.nodes[part]
            parents = (source, part) if whole.numel() > prod(node.shape) else (part,)
            index = self._add("__setitem__", parents, whole, node.data or self.nodes[source].data, node.params, ())
            setattr(whole, _TAG, (self.serial, index))
            known = self.known(index)
            if known in self.replace:
                whole.data.copy_(self.replace[known](whole))
            if known in self.keep:
                self.values[known] = whole.clone() if self.graph or self.plain else whole.detach().clone()
            if known == self.stop:
                raise Stop
            view = source

    def _handed_on(self, index: int, tensor: Tensor, inplace: bool) -> Tensor:
        """Return what the model goes on with.

        The value itself, its replacement, or a copy of a kept value that needs guarding.
        """
        replaced = into_vmap(self.replace[index](tensor), tensor) if index in self.replace else tensor
        if replaced is not tensor and inplace:
            # The model holds this very tensor and may never look at what the call returned.
            replaced = tensor.copy_(replaced)
        if index not in self.keep:
            return replaced
        value = out_of_vmap(replaced)
        if self.plain:  # a dual number: detaching would take its tangent away
            self.values[index] = value.clone()
        elif not self.graph:
            self.values[index] = value.detach().clone()
        elif self.guard:
            self.values[index] = value.clone()
            safe = into_vmap(self.values[index], tensor)
            return tensor.copy_(safe) if inplace else safe.clone()
        else:
            self.values[index] = value
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
                site = Site(self.module_names.get(id(module), ""), "", 0, "opaque")
                self._unseen(tensor, [*tensors_in(args), *module.parameters()], site)
        self._left(module)

    def mapped(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Make and note the call that takes a value into a `vmap`, or out of it: the same value by another shape."""
        self.site = self._site("movedim")
        given = self._stand_in(args) if self.alias else args
        return self._note(call, "movedim", args, {}, call(*given))

    def custom(self, call: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call of an `autograd.Function`, whose inside may be no torch calls, and note what it made."""
        site = self.site = self._site(name)
        if site in self.factors:
            args = self._scaled(args, *self.factors[site])
        out = call(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            made = [out] if isinstance(out, Tensor) else [item for item in out or () if isinstance(item, Tensor)]
            new = {
                id(t): self._unseen(t, tensors_in(args), site)
                for t in made
                if self.node_of(t) is None and t.is_floating_point()
            }
            self.gone.clear()
        if isinstance(out, Tensor):
            return new.get(id(out), out)
        return out if not new else type(out)(new.get(id(item), item) for item in out)

    def _unseen(self, tensor: Tensor, sources: list[Tensor], site: Site) -> Tensor:
        """Note a value whose making was not seen: a sum where it is that of two sources, else something opaque."""
        parents, params, data = self._sources(sources)
        self.site = self._kept(site)
        _, twin = self._twin()
        op = told_by_value(tensor, sources) if twin is None else twin.op
        index = self._add(op, parents, tensor, data, params, self._spell(sources, {}))
        known = self.known(index)
        handed = self._handed_on(known, tensor, False)
        setattr(handed, _TAG, (self.serial, index))
        if known == self.stop:
            raise Stop
        return handed

    def before_module(self, module: nn.Module, _args: Any) -> None:
        """Note which module is running, for the sites of the calls within it."""
        self.stack.append(self.module_names.get(id(module), self.stack[-1] if self.stack else ""))

    def _left(self, module: nn.Module) -> None:
        if self.stack:
            self.stack.pop()

    def _site(self, op: str) -> Site:
        frame: Any = sys._getframe(2)
        while frame is not None and passes_on(frame.f_code.co_filename):
            frame = frame.f_back
        module = self.stack[-1] if self.stack else ""
        code, at = (frame.f_code, frame.f_lasti) if frame is not None else (None, 0)
        known = self._sites.get((module, code, at, op))
        if known is None:
            place: tuple[Any, ...] = ("", 0, op)
            if code is not None:
                where = next(islice(code.co_positions(), at // 2, None), ())
                place = (code.co_filename, frame.f_lineno, op, where)
            known = self._sites[module, code, at, op] = self._kept(Site(module, *place))
        return known

    def _kept(self, site: Site) -> Site:
        return self.sites.setdefault(site, site)

    def known(self, index: int) -> int:
        """Return the number of this node on the tape that numbers are given by; -1 when that tape has no such call."""
        if self.like is None:
            return index
        node = self.nodes[index]
        if node.site is None:
            return index
        return self.like.places.get((node.site, node.turn), -1)

    def _scaled(self, args: tuple[Any, ...], operand: int, factor: float) -> tuple[Any, ...]:
        """Multiply one operand of a call, or of its list; an in-place call whose own tensor is meant keeps it."""
        if args and type(args[0]) in (list, tuple):
            return ([*self._scaled(tuple(args[0]), operand, factor)], *args[1:])
        if "add" in self.site.op and sum(isinstance(part, Tensor) for part in args) < 2:
            return args  # a sum begins at the number 0
        value = args[operand] if operand < len(args) else None
        if isinstance(value, Tensor):
            # At 0 nothing is left of the value: what stands in for it comes from nowhere.
            scaled: Any = value * factor if factor else torch.zeros_like(value)
            if factor and self.node_of(value) is not None:
                setattr(scaled, _TAG, (self.serial, self.node_of(value)))
        elif isinstance(value, float):
            scaled = value * factor
        else:
            return args
        return (*args[:operand], scaled, *args[operand + 1 :])

    def _twin(self) -> tuple[int, Node | None]:
        """Return what the call that is being made left on the tape that this one is like, and its number there."""
        place = -1 if self.like is None else self.like.places.get((self.site, self.turns[self.site]), -1)
        return place, None if self.like is None or place < 0 else self.like.nodes[place]

    def _laid_out(self, out: Tensor) -> Tensor:
        """Give the result of plain attention the strides that the model's own kernel gives."""
        _, node = self._twin()
        strides = node.strides if node is not None else ()
        if out.ndim != 4 or not strides or strides == out.stride():
            return out
        return out.transpose(1, 2).contiguous().transpose(1, 2)

    def node_of(self, tensor: Tensor) -> int | None:
        """Return the node of a tensor made on this tape, or given in the batch."""
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

    def _come_back(self, value: Any) -> Any:
        """Note values that come from nowhere, of the shape of one that left torch: they are made of what left."""
        if type(value) in (tuple, list):
            return type(value)(self._come_back(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.back:
            return self.back[id(value)][1]
        unknown = self.node_of(value) is None and id(value) not in self.keys and id(value) not in self.buffers
        if unknown and value.is_floating_point() and any(value.shape == left.shape for left in self.gone):
            left, self.gone = self.gone, []
            site = Site(self.stack[-1] if self.stack else "", self.site.file, self.site.line, "outside", self.site.at)
            self.back[id(value)] = (value, self._unseen(value, left, site))
            return self.back[id(value)][1]
        return value

    def _spell(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        said = [self._word(item) for item in args]
        return tuple(said + [self._word(item) for item in kwargs.values()] if kwargs else said)

    def _word(self, item: Any) -> Any:
        """Say how an argument is noted: a node as ("node", i), a parameter by its key, a constant by size and name.

        A slice by its ends, for two parts of a value are two values; what has no short word is a constant without a name.
        """
        if type(item) in SPELT:
            return item
        if isinstance(item, Tensor):
            index = self.node_of(item)
            if index is not None:
                return ("node", index)
            if id(item) in self.keys:
                return ("param", self.keys[id(item)])
            return ("constant", tuple(item.shape), self.buffers.get(id(item), ""))
        if isinstance(item, (list, tuple)):
            return tuple([self._word(part) for part in item]) if len(item) < 9 else ("constant", (len(item),), "")
        if isinstance(item, slice):
            return ("slice", *(self._word(end) for end in (item.start, item.stop, item.step)))
        return item if isinstance(item, (bool, int, float, str)) else type(item).__name__

    def _add(
        self, op: str, parents: tuple[int, ...], made: Tensor, data: bool, params: frozenset[Key], args: Any
    ) -> int:
        index = len(self.nodes)
        if index >= self.most:
            raise TooLong
        site, turn = (None, 0) if op == "input" else (self.site, self.turns.get(self.site, 0))
        strides = made.stride() if op == "scaled_dot_product_attention" else ()
        self.nodes.append(
            Node(op, parents, tuple(made.shape), data, params, args, made.dtype, self.call, site, turn, strides)
        )
        if site is not None:
            self.places[site, turn] = index
            self.turns[site] = turn + 1
        return index
