"""Key-value caches of transformers for a looped model: a slot per visit, or the last visit's for all.

Shapes: B batch, K key-value heads, T positions of this call, E head_dim.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from loopscale.errors import UserError, nearest, transformers
from loopscale.nn import last_visit, per_visit
from loopscale.nn.past import Sharing, check_loops

SHARINGS: dict[str, Sharing] = {"per_visit": per_visit, "last_visit": last_visit}
_MARK = "_loopscale_slots"


class LoopedCache(transformers().DynamicCache):  # type: ignore[misc, name-defined, unused-ignore]
    """`DynamicCache` with the sharing of its slots as a value.

    "per_visit" (the default, also of any `DynamicCache`): exact, loops x layers slots. "last_visit": one slot a layer; the
    prompt is exact, tokens after it look back at the last visit's keys and values: an approximation at 1/loops the memory.

    Raises `UserError` for an unknown name.
    """

    def __init__(self, sharing: str = "per_visit") -> None:
        super().__init__()
        if sharing not in SHARINGS:
            raise UserError(f"unknown sharing {sharing!r} of cache slots: {nearest(str(sharing), SHARINGS)}")
        setattr(self, _MARK, CacheSlots(self, SHARINGS[sharing]))


class CacheSlots:
    """transformers' cache as the house model's: slots are numbered in the order in which layers first run."""

    def __init__(self, cache: Any, sharing: Sharing) -> None:
        self.cache, self.sharing = cache, sharing
        self.loops: int | None = None
        self.length = 0
        self._numbers: dict[Hashable, int] = {}

    def begin(self, loops: int) -> None:
        """Begin a pass at `loops`; raises `UserError` when they change while tokens are held."""
        self.length = int(self.cache.get_seq_length())
        check_loops(self.length, self.loops, loops)
        if not self.length:
            self._numbers.clear()
        self.loops = loops

    def extend(self, part: str, visit: int, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `loopscale.nn.past.Cache`: [B, K, T, E] of this call in, those of all positions out."""
        number = self._numbers.setdefault(self.sharing(part, visit, layer), len(self._numbers))
        layers = self.cache.layers
        if number >= len(layers):
            if getattr(self.cache, "layer_class_to_replicate", None) is None:
                layers.append(type(layers[0])())
        elif layers[number].get_seq_length() > self.length:
            # A shared slot: the visit before wrote these positions too.
            layers[number].keys = layers[number].keys[..., : self.length, :]
            layers[number].values = layers[number].values[..., : self.length, :]
        extended: tuple[Tensor, Tensor] = self.cache.update(keys, values, number)
        return extended


def slots_of(cache: Any) -> CacheSlots:
    """Find or make the slots of a growing cache of transformers; raises `UserError` for one of fixed size."""
    known = getattr(cache, _MARK, None)
    if isinstance(known, CacheSlots) and known.cache is cache:
        return known
    if not isinstance(cache, transformers().DynamicCache):
        raise UserError(
            f"a looped model needs a cache that grows, not {type(cache).__name__}: leave cache_implementation out, or "
            "pass LoopedCache()"
        )
    slots = CacheSlots(cache, per_visit if known is None else known.sharing)
    if known is not None:  # a copy of a cache
        slots.loops, slots._numbers = known.loops, dict(known._numbers)
    setattr(cache, _MARK, slots)
    return slots
