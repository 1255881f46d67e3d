"""What a model says of its own scale: a `Loop`, the handle that `attach` left in it, or the house model.

All by their attributes, since the diagnosis may not import what defines them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopscale.probe.noting import Given, noting
from loopscale.speaker import handle_of


@dataclass(frozen=True)
class Stated:
    """N as the model counts it in one pass (None: it cannot be wrong), and eps that follows from it (None: Post-LN).

    `kind` is loop, attached or house; `where` as it is said to the user.
    """

    kind: str
    where: str
    loops: int | None = None
    eps: float | None = None
    base_layers: int | None = None
    strength: float = 1.0


@contextmanager
def listening(model: nn.Module) -> Iterator[dict[str, Stated]]:
    """Give what every `Loop` that is called inside counts, by the name of the module."""
    heard: dict[str, Stated] = {}

    def note(name: str, module: Any, given: Given, _out: Any) -> None:
        visits = module.loops if given[1].get("loops") is None else given[1]["loops"]
        eps = None if module.rule.norm == "post" else module.residual_scale(visits)
        where = f"`{name}`" if name else "the model"
        heard[name] = Stated("loop", where, module.depth_at(visits).loops, eps, module.base_layers, module.strength)

    names = [name for name, m in model.named_modules() if hasattr(m, "depth_at") and hasattr(m, "stack")]
    with noting(model, note, names):
        yield heard


def stated_for(model: nn.Module, modules: tuple[str, ...], heard: Mapping[str, Stated]) -> Stated | None:
    """Return what the model says of these looped modules: its handle, the innermost `Loop` around them, the house model."""
    handle = handle_of(model)
    if handle is not None and handle.kind == "converted":
        eps = handle.step(handle.loops)
        return Stated("attached", "the converted core", handle.loops, eps, handle.base_layers, handle.strength)
    if handle is not None:
        eps = None if handle.rule.norm == "post" else handle.residual_scale
        return Stated("attached", "the attached scale", handle.loops, eps, handle.base_layers, handle.strength)
    around = [name for name in heard if not name or any(f"{module}.".startswith(f"{name}.") for module in modules)]
    if around:
        return heard[max(around, key=len)]
    for module in model.modules():
        base = getattr(getattr(module, "config", None), "base_layers", None)
        if callable(getattr(module, "residual_scale", None)) and isinstance(base, int):
            return Stated("house", "the model", base_layers=base)
    return None


def attachment_in(model: nn.Module) -> Any:
    """Return the handle of `attach` in the model or a part of it; None without. That of `convert` loops by itself: none."""
    handle = handle_of(model)
    return handle if handle is not None and handle.kind == "attached" else None


@contextmanager
def scaled_for(handle: Any, loops: int) -> Iterator[None]:
    """Let an attached model scale its branches for this many loops inside; nothing happens without a handle."""
    if handle is None or handle.loops == loops:
        yield
        return
    before = handle.loops
    handle.set_loops(loops)
    try:
        yield
    finally:
        handle.set_loops(before)
