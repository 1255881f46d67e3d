"""The looped core of a converted model: which layers are visited again, and how the last of them runs the other visits.

The layers stay where they are, under their names. Their class becomes a subclass with another `__call__`: called by the
model it makes the first visit and notes its arguments; the last layer of the core then makes the other visits with
them. `__call__`, so that hooks, gradient checkpointing and FSDP's gathering, which live in or below it, happen once a
visit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.adapt import cache_slots as slots
from loopscale.errors import UserError

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
            slots.refuse_states(layer, kwargs)
            if any(map(slots.is_cache, (*args, *kwargs.values()))):
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
            if slots.is_cache(value):
                slots.open_slots(value, self.first, len(self.layers), self.total, self.loops)

    def _each_cache(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], visit: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with every cache replaced by its view at this visit."""

        def shown(value: Any) -> Any:
            if not slots.is_cache(value):
                return value
            return slots.view(value, visit, self.first, len(self.layers), self.total)

        return tuple(map(shown, args)), {name: shown(value) for name, value in kwargs.items()}


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def with_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's arguments with another stream, the first positional, `hidden_states` or the first tensor."""
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
    """Return a layer's results with another stream."""
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
