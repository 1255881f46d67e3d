"""What a model says of its own scale: the handle that `attach` left in it, which has to follow the number of loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Where `attach` keeps its handle: by name, since the diagnosis may not import adapt.
PLACE = "_loopscale"


def attachment_in(model: nn.Module) -> Any:
    """The handle of `attach` in the model or a part of it; None without. That of `convert` loops by itself: none."""
    found = (vars(module).get(PLACE) for module in model.modules())
    return next((handle for handle in found if hasattr(handle, "factor")), None)


@contextmanager
def scaled_for(handle: Any, loops: int) -> Iterator[None]:
    """Inside, an attached model scales its branches for this many loops; nothing happens without a handle."""
    if handle is None or handle.loops == loops:
        yield
        return
    before = handle.loops
    handle.set_loops(loops)
    try:
        yield
    finally:
        handle.set_loops(before)
