"""Cache slots per visit: a shared layer keeps the keys and values (or states) of every visit apart.

Slots 0..total-1 are those of the model's own layers and serve the first visit; those of visit n >= 1 follow them. A
visit gets a view of the cache: a shallow copy whose list of layers shows that visit's slots in the places of the shared
layers. So attention code is untouched, and `reorder_cache`, `crop` and `reset` of the cache reach every slot.
"""

from __future__ import annotations

import copy
import re
import sys
from typing import Any

from loopscale.errors import UserError

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
    """Raise `UserError` when a layer is handed a state that is no cache of transformers: visits would overwrite it."""
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
