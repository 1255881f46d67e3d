"""The residual stream by visit, in any model whose forward pass applies layers again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from loopscale.parameterization import Role
from loopscale.probe.tape import tensors_in

Call = Callable[[], object]
Note = Callable[[Any], object]


class Visits:
    """Finds where a model's visits begin and end: at the outermost modules with hidden matrices that are called repeatedly.

    The first `call` finds them; a model that calls each layer once has no visits.
    """

    def __init__(self, model: nn.Module, roles: Mapping[str, Role]) -> None:
        self._model, self._roles = model, roles
        self._ends: tuple[nn.Module, nn.Module] | None = None
        self._sought = False

    def rms(self, call: Call) -> list[float]:
        """Give the RMS of the stream at entry to the first visit and after each visit of one forward pass."""
        entries, ends = list[float](), list[float]()
        with self.noted(call, lambda x: entries.append(_rms(x)), lambda x: ends.append(_rms(x))):
            call()
        return [*entries[:1], *ends]

    @contextmanager
    def noted(self, call: Call, begin: Note, end: Note) -> Iterator[None]:
        """Call `begin(inputs)` and `end(output)` at every visit inside."""
        if not self._sought:
            self._ends, self._sought = self._find(call), True
        handles = []
        if self._ends is not None:
            handles = [
                self._ends[0].register_forward_pre_hook(lambda _, *given: _silent(begin(given)), with_kwargs=True),
                self._ends[1].register_forward_hook(lambda _, given, output: _silent(end(output))),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _find(self, call: Call) -> tuple[nn.Module, nn.Module] | None:
        hidden = {name for name, role in self._roles.items() if role is Role.HIDDEN}
        modules = [(n, m) for n, m in self._model.named_modules() if any(h.startswith(f"{n}.") for h in hidden) and n]
        counts, callers, now = Counter[nn.Module](), dict[nn.Module, list[nn.Module]](), list[nn.Module]()

        def enter(module: nn.Module, *_: Any) -> None:
            counts[module] += 1
            callers.setdefault(module, list(now))
            now.append(module)

        def leave(*_: Any) -> None:
            now.pop()

        handles = [module.register_forward_pre_hook(enter) for _, module in modules]
        handles += [module.register_forward_hook(leave) for _, module in modules]
        try:
            call()
        finally:
            for handle in handles:
                handle.remove()
        outermost = [m for m in callers if counts[m] > 1 and all(counts[caller] == 1 for caller in callers[m])]
        most = max((counts[module] for module in outermost), default=0)
        looped = [module for module in outermost if counts[module] == most]
        return (looped[0], looped[-1]) if looped else None


def _silent(result: object) -> None:
    """Return nothing: what a hook returns would replace the value that it saw."""


def _rms(value: Any) -> float:
    stream = next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)
    return float("nan") if stream is None else float(stream.detach().float().square().mean().sqrt())
