"""The looped core of a converted model: which layers are visited again, and how the last of them runs the other visits.

The layers stay where they are, under their names. Their class becomes a subclass with another `__call__`: called by the
model it makes the first visit and notes its arguments; the last layer of the core then makes the other visits with
them. `__call__`, so that hooks, gradient checkpointing and FSDP's gathering, which live in or below it, happen once a
visit.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError

# Slots 0..total-1 of a cache are those of the model's own layers and serve the first visit; those of visit n >= 1 follow
# them. A visit gets a view: a shallow copy whose list of layers shows that visit's slots in the places of the shared
# layers. So attention code is untouched, and `reorder_cache`, `crop` and `reset` of the cache reach every slot.
_VISITS = "_loopscale_visits"
_STATE = re.compile(r"(^|_)(cache|past|states?|mems?)(_|$)")


def is_cache(value: Any) -> bool:
    """Say whether this is a cache of transformers (which need not be imported)."""
    module = sys.modules.get("transformers.cache_utils")
    if module is None:
        return False
    kinds = tuple(getattr(module, name) for name in ("Cache", "EncoderDecoderCache") if hasattr(module, name))
    return isinstance(value, kinds)


def open_slots(cache: Any, first: int, layers: int, total: int, visits: int) -> None:
    """Make room for `visits` visits of the layers first..first+layers-1 of `total`, before the first of them runs.

    Raises `UserError` when the cache holds tokens that were cached under another number of visits.
    """
    inner = getattr(cache, "self_attention_cache", cache)
    if not type(inner).__module__.startswith("transformers.cache_utils"):
        raise UserError(
            f"the cache is a {type(inner).__name__}, which has no slot for each visit: call the model with use_cache=False"
        )
    length = tokens_in(inner, first)
    known = getattr(inner, _VISITS, None)
    if length and known != visits:
        before = "without loops" if known is None else f"at {known} loops"
        raise UserError(
            f"the cache holds tokens cached {before} and the model now runs {visits}: keep the loops while a cache is "
            "live, or start with an empty cache"
        )
    if length or (known == visits and len(inner.layers) == total + (visits - 1) * layers):
        return
    kind = getattr(inner, "layer_class_to_replicate", None)
    while kind is not None and len(inner.layers) < total:
        inner.layers.append(kind())
    del inner.layers[total:]
    for _visit in range(1, visits):
        inner.layers += [copy.deepcopy(inner.layers[first + place]) for place in range(layers)]
    setattr(inner, _VISITS, visits)


def view(cache: Any, visit: int, first: int, layers: int, total: int) -> Any:
    """Return the cache as the layers see it at this visit (0-based)."""
    if visit == 0:
        return cache
    shown = copy.copy(cache)
    if hasattr(cache, "self_attention_cache"):
        shown.self_attention_cache = view(cache.self_attention_cache, visit, first, layers, total)
        return shown
    begin = total + (visit - 1) * layers
    shown.layers = list(cache.layers)
    shown.layers[first : first + layers] = cache.layers[begin : begin + layers]
    return shown


def refuse_states(layer: Any, kwargs: dict[str, Any]) -> None:
    """Raise `UserError` when a layer gets a state that is not a cache of transformers: visits would overwrite it."""
    for name, value in kwargs.items():
        if isinstance(value, (list, dict)) and value and _STATE.search(name):
            raise UserError(
                f"{type(layer).__name__} keeps its {name!r} in a {type(value).__name__}, which has no slot for each visit: "
                "call the model with use_cache=False"
            )


def tokens_in(cache: Any, layer: int) -> int:
    """Return tokens that the slot of a layer holds; 1 for a slot of states that has one.

    Layers before it may be a call ahead.
    """
    if layer >= len(cache.layers):
        return 0
    slot = cache.layers[layer]
    if hasattr(slot, "get_seq_length"):
        return int(slot.get_seq_length())
    known = slot.has_previous_state
    return int(any(known.values()) if isinstance(known, dict) else known)


PLAN = "_loopscale_core"


# Untyped in torch: calls stay in Python, what they call is compiled.
_in_python: Callable[[Any], Any] = torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call]


class Core:
    """Visits `layers` (modules first..first+len-1 of `total`) `loops` times; `mix` damps the visits after the first.

    Damped: stream <- stream + mix * (stack(stream) - stream). With mix None every visit is taken in full, and what the
    branches are multiplied by is the hooks' business.
    """

    def __init__(self, layers: list[nn.Module], first: int, total: int) -> None:
        self.layers = layers
        self.first = first
        self.total = total
        self.loops = 1
        self.mix: Tensor | None = torch.tensor(0.0)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer of the core as the model calls it, and the other visits after the last."""
        if layer is self.layers[0]:
            self.calls = []
            refuse_states(layer, kwargs)
            if any(map(is_cache, (*args, *kwargs.values()))):
                self._open_slots(args, kwargs)
        self.calls.append((args, kwargs))
        out = layer.visit(*args, **kwargs)
        if layer is not self.layers[-1]:
            return out
        calls, self.calls = self.calls, []
        if len(calls) != len(self.layers):
            raise UserError("the model did not call the layers of the core once each, in order: it cannot be looped")
        return self._other_visits(out, calls)

    # The loop stays in Python under torch.compile and the layers' bodies are compiled: N, which no compiled code reads,
    # then costs no new graph.
    @_in_python
    def _other_visits(self, out: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Any:
        for visit in range(1, self.loops):
            before = stream = first_of(out)
            for layer, (args, kwargs) in zip(self.layers, calls, strict=True):
                args, kwargs = self._each_cache(args, kwargs, visit)
                args, kwargs = with_stream(args, kwargs, stream)
                out = layer.visit(*args, **kwargs)  # type: ignore[operator]
                stream = first_of(out)
            if self.mix is not None:
                out = with_first(out, before + self.mix * (stream - before))
        return out

    @_in_python
    def _open_slots(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if is_cache(value):
                open_slots(value, self.first, len(self.layers), self.total, self.loops)

    def _each_cache(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], visit: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with every cache replaced by its view at this visit."""

        def shown(value: Any) -> Any:
            if not is_cache(value):
                return value
            return view(value, visit, self.first, len(self.layers), self.total)

        return tuple(map(shown, args)), {name: shown(value) for name, value in kwargs.items()}


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def with_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put `stream` into a layer's arguments: the first positional, `hidden_states` or the first tensor."""
    if args and _floating(args[0]):
        return (stream, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next((k for k, v in kwargs.items() if _floating(v)), None)
    if name is None:
        raise UserError("a layer of the core is called without a stream: it cannot be looped")
    return args, {**kwargs, name: stream}


def first_of(out: Any) -> Tensor:
    """Return the stream among a layer's results."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(first, Tensor):
        raise UserError(f"a layer of the core returns {type(out).__name__}, not its stream first: it cannot be looped")
    return first


def with_first(out: Any, stream: Tensor) -> Any:
    """Put `stream` into a layer's results."""
    return type(out)((stream, *out[1:])) if isinstance(out, (tuple, list)) else stream


_LOOPING: dict[type, type[nn.Module]] = {}


def looping(base: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a layer's class that belongs to a core. It keeps the name, by which others look layers up."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[PLAN].enter(self, args, kwargs)

    def visit(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.__call__(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return blank, (base,), vars(self)

    if base in _LOOPING:
        return _LOOPING[base]
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    members = {"__call__": call, "visit": visit, "__reduce_ex__": reduce, "_loopscale_base": base, **names}
    return _LOOPING.setdefault(base, type(base.__name__, (base,), members))


def blank(base: type[nn.Module]) -> Any:
    """Return an empty layer of a core, for copy and pickle to fill."""
    kind = looping(base)
    return kind.__new__(kind)


def enlist(core: Core) -> None:
    """Put the layers into the core."""
    for layer in core.layers:
        vars(layer)[PLAN] = core
        layer.__class__ = looping(type(layer))


def dismiss(core: Core) -> None:
    """Take the layers out again. Raises `UserError` when another library changed their class meanwhile."""
    inside = [layer for layer in core.layers if PLAN in vars(layer)]
    for layer in inside:
        if "_loopscale_base" not in vars(type(layer)):
            raise UserError(f"{type(layer).__name__} was wrapped after convert (fully_shard?): detach before wrapping")
    for layer in inside:
        layer.__class__ = type(layer)._loopscale_base  # type: ignore[attr-defined]
        vars(layer).pop(PLAN, None)
