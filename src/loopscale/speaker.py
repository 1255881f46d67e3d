"""Who speaks for a model: the `Loop` inside it, the handle that attach or convert left on it, or the model itself.

The one owner of the mark that a handle leaves. optim, diagnosis, train and adapt ask here and know no more of each
other. The mark is an attribute of the module and no submodule or buffer, so that names and state dict stay, and a
deepcopy of the model has a handle of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from loopscale.errors import UserError
from loopscale.parameterization import Depth, Rule

if TYPE_CHECKING:
    from torch import nn

_MARK = "_loopscale"


class Speaker(Protocol):
    """What a `Loop`, the house model or the handle of `attach` or `convert` (`adapt.Handle`) states of a model."""

    rule: Rule
    strength: float
    base_layers: int | None

    @property
    def depth(self) -> Depth:
        """N and L."""


def leave(model: nn.Module, handle: Speaker) -> None:
    """Let the handle speak for the model from now on."""
    vars(model)[_MARK] = handle


def forget(model: nn.Module) -> None:
    """Remove the handle from the model."""
    for module in model.modules():
        vars(module).pop(_MARK, None)


def named_handle(model: Any) -> tuple[str, Any] | None:
    """Return the handle on the model or on a part of it, with the part's name (DDP and PEFT wrap that part)."""
    parts = model.named_modules() if hasattr(model, "named_modules") else ()
    return next(((name, vars(part)[_MARK]) for name, part in parts if _MARK in vars(part)), None)


def handle_of(model: Any) -> Any:
    """Return the handle on the model or on a part of it; None without one."""
    found = named_handle(model)
    return None if found is None else found[1]


def speaker(model: Any) -> Any:
    """Return who states roles, depth and rule; raises `UserError` for a converted checkpoint that was not restored."""
    found = handle_of(model)
    if found is not None:
        return found
    lost = unrestored(model)
    if lost is not None:
        raise UserError(lost)
    return model


def speakers(model: Any) -> list[Speaker]:
    """Return who states `rule` and `depth`: the handle, the model, or else the outermost modules inside it."""
    return list(_speakers(speaker(model)))


def states_depth(part: Any) -> bool:
    """Say whether this object states `rule` and `depth` itself, as a `Loop` does."""
    return hasattr(part, "rule") and hasattr(part, "depth")


def _speakers(part: Any) -> Iterator[Speaker]:
    if states_depth(part):
        yield part
        return
    for child in part.children() if hasattr(part, "children") else ():
        yield from _speakers(child)


def base_layers(part: Any) -> int | None:
    """Return L_base, which a model may also state in its config."""
    base: int | None = getattr(part, "base_layers", getattr(getattr(part, "config", None), "base_layers", None))
    return base


def unrestored(model: Any) -> str | None:
    """Return what to say of a converted checkpoint that was loaded without `restore`; None for every other model."""
    stored = getattr(getattr(model, "config", None), "loopscale", None)
    if not isinstance(stored, dict) or "convert" not in stored or handle_of(model) is not None:
        return None
    return (
        f"the checkpoint is of a model converted to {stored.get('loops')} loops and its loops are not in place: "
        "call loopscale.restore(model) after from_pretrained"
    )
