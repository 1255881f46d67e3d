"""The one way to take notes while a model runs: a function that is called after every call of the modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

Given = tuple[tuple[Any, ...], dict[str, Any]]
Note = Callable[[str, nn.Module, Given, Any], Any]


@contextmanager
def noting(
    model: nn.Module, note: Note, names: Iterable[str] | None = None, *, before: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Call `note(name, module, (args, kwargs), output)` inside, after every call of the named modules (default: all).

    What `note` returns takes the place of the output, unless it is None. `before(name)` is called before each call.
    The hook on a module lives no longer than the module's own call, so that a deepcopy made inside has none; it comes
    last, and sees what other hooks made of the output. torch's fused encoder path, which calls no modules, is off.
    """
    chosen = dict(model.named_modules()) if names is None else {name: model.get_submodule(name) for name in names}
    known: dict[int, list[str]] = {}
    for name, module in chosen.items():
        known.setdefault(id(module), []).append(name)
    live: list[Any] = []

    def tell(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        answer = None
        for name in known[id(module)]:
            said = note(name, module, (args, kwargs), output if answer is None else answer)
            answer = answer if said is None else said
        return answer

    def enter(module: nn.Module, _args: Any) -> None:
        for name in known.get(id(module), ()) if before is not None else ():
            before(name)  # type: ignore[misc]
        if id(module) not in known or isinstance(module, torch.jit.ScriptModule):
            return

        def leave(*call: Any) -> Any:
            live.remove(handle)
            handle.remove()
            return tell(*call)

        handle = module.register_forward_hook(leave, with_kwargs=True)
        live.append(handle)

    def scripted(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Tell of a module that takes no hook of its own."""
        told = id(module) in known and isinstance(module, torch.jit.ScriptModule)
        return tell(module, args, kwargs, output) if told else None

    everywhere = (register_module_forward_pre_hook(enter), register_module_forward_hook(scripted, with_kwargs=True))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in everywhere:
            handle.remove()
        for handle in live:
            handle.remove()
