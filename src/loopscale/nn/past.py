"""What attention sees besides the tokens of this call: keys and values of earlier tokens, and which tokens are padding.

Shapes: B batch, T positions of this call, S positions seen (earlier ones and these), K key-value heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from loopscale.errors import UserError

Sharing = Callable[[str, int, int], Hashable]


def per_visit(part: str, visit: int, layer: int) -> Hashable:
    """Give a slot to every visit of every layer: exact, N times the memory of one visit."""
    return part, visit, layer


def last_visit(part: str, visit: int, layer: int) -> Hashable:
    """Give one slot to each layer, which holds the last visit's: an approximation with 1/N of the memory."""
    return part, layer


class Cache(Protocol):
    """Where keys and values are kept. A cache of another library joins by these two methods and the length."""

    @property
    def length(self) -> int:
        """Tokens held."""

    def begin(self, loops: int) -> None:
        """Say that a call follows; raises `UserError` when tokens are held that saw another number of loops."""

    def extend(self, part: str, visit: int, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [B, K, T, E] of this call; give those of all positions, [B, K, S, E]."""


class KeyValueCache:
    """Keys and values of earlier tokens, in slots by `sharing`: `per_visit` (exact) or `last_visit` (approximate).

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> model, tokens = LoopedTransformer(ModelConfig()), torch.tensor([[1, 2, 3, 4]])
    >>> past = Past(KeyValueCache())
    >>> start, rest = model(tokens[:, :3], past=past), model(tokens[:, 3:], past=past)
    >>> torch.allclose(rest[:, -1], model(tokens)[:, -1], atol=1e-5)
    True
    """

    def __init__(self, sharing: Sharing = per_visit) -> None:
        self.sharing = sharing
        self.loops: int | None = None
        self.length = 0
        self._slots: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def begin(self, loops: int) -> None:
        """Begin a call; raise `UserError` when the loops change while tokens are held."""
        self.length = next((keys.shape[-2] for keys, _ in self._slots.values()), 0)
        check_loops(self.length, self.loops, loops)
        self.loops = loops

    def extend(self, part: str, visit: int, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Cut at the length before this call first: a shared slot, or a recomputed visit, replaces what it wrote."""
        slot = self.sharing(part, visit, layer)
        if self.length:
            before_keys, before_values = self._slots[slot]
            keys = torch.cat((before_keys[..., : self.length, :], keys), dim=-2)
            values = torch.cat((before_values[..., : self.length, :], values), dim=-2)
        self._slots[slot] = keys, values
        return keys, values

    @property
    def numel(self) -> int:
        """Numbers held in all slots."""
        return sum(keys.numel() + values.numel() for keys, values in self._slots.values())


def check_loops(length: int, before: int | None, loops: int) -> None:
    """Raise `UserError` when `length` > 0 tokens are cached under another number of loops."""
    if length and before != loops:
        raise UserError(
            f"the cache holds {length} tokens computed with {before} loops and this call asks for {loops}: "
            "begin a new cache to change the loops"
        )


@dataclass(frozen=True)
class Past:
    """A cache, and `padding` [B, S], 1 at tokens and 0 at padding, over the cached positions and those of the call.

    `places` [B, T] gives the positions of the call's tokens, where they are not a matter of counting.
    """

    cache: Cache | None = None
    padding: Tensor | None = None
    places: Tensor | None = None

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Give the positions of the tokens of this call: [T], or [B, 1, T] (for all heads) when padding shifts them."""
        if self.places is not None:
            return self.places[:, None, -count:]
        if self.padding is None:
            start = 0 if self.cache is None else self.cache.length
            return torch.arange(start, start + count, device=device)
        return (self.padding.long().cumsum(-1) - 1).clamp(min=0)[:, None, -count:]

    def mask(self, count: int, device: torch.device) -> Tensor | None:
        """Give True where a query may look, [T, S] or [B, 1, T, S]; None: plain causal attention, or one token seeing all.

        A padded position sees itself: a softmax over nothing is not a number.
        """
        start = 0 if self.cache is None else self.cache.length
        whole = self.padding is None or bool(self.padding.all())
        packed = self._packed(count) if whole and start == 0 else None
        if whole and packed is None and (start == 0 or count == 1):
            return None
        causal = torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)
        if packed is not None:
            return causal & (packed[:, None, :, None] == packed[:, None, None, :])
        if whole or self.padding is None:
            return causal
        itself = torch.ones_like(causal).tril(start).triu(start)
        return causal & self.padding.bool()[:, None, None, :] | itself

    def _packed(self, count: int) -> Tensor | None:
        """Give the number of each token's text [B, T], or None for one text; a text begins where the places start anew."""
        if self.places is None or count == 1:
            return None
        begins = self.places.diff(dim=-1) != 1
        return torch.nn.functional.pad(begins.cumsum(-1), (1, 0)) if bool(begins.any()) else None

    def check(self, batch: int, count: int) -> None:
        """Raise `UserError` unless the padding covers the cached positions and those of the call."""
        start = 0 if self.cache is None else self.cache.length
        if self.padding is not None and tuple(self.padding.shape) != (batch, start + count):
            raise UserError(
                f"the padding mask has shape {tuple(self.padding.shape)}, but {batch} sequences of {start} cached and "
                f"{count} new tokens need ({batch}, {start + count}): give 1 or 0 for each of these positions"
            )


class Place(NamedTuple):
    """Where the tokens of a call stand, as rotary angles, and what they see: a cache, and a mask (None: causally)."""

    rotation: Tensor
    cache: Cache | None = None
    mask: Tensor | None = None

    def slot(self, part: str, visit: int, layer: int) -> Slot | None:
        """Give the slot of a layer of `part` ("prelude", "core", "coda") at a visit; None where there is nothing to see."""
        return None if self.cache is None and self.mask is None else Slot(self, part, visit, layer)


class Slot(NamedTuple):
    """What one layer sees at one visit."""

    place: Place
    part: str
    visit: int
    layer: int

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `Cache.extend` says, where there is a cache."""
        cache = self.place.cache
        return (keys, values) if cache is None else cache.extend(self.part, self.visit, self.layer, keys, values)
