"""Batches as a pure function of seed and step, from packed tokens; made ahead, while the step before is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from loopscale.data.tokenizer import Tokenizer
from loopscale.errors import UserError, nearest

ROUNDS = 6


def shuffled(first: int, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return elements first .. first + count - 1 of an endless sequence in which each run of `size` is a permutation.

    Element k belongs to epoch k // size, which has a permutation of its own. It is a Feistel network over the next power
    of four, walked until the value is below `size` (Black and Rogaway 2002), so that nothing is stored and any place is
    reached at once.

    >>> sorted(shuffled(first=20, count=10, size=10, seed=1).tolist()) == list(range(10))
    True
    """
    index = np.arange(first, first + count, dtype=np.int64)
    epochs, places = index // size, index % size
    return np.array([_place(int(k), size, seed, int(epoch)) for k, epoch in zip(places, epochs, strict=True)], np.int64)


def _place(k: int, size: int, seed: int, epoch: int) -> int:
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = k >> half, k & ((1 << half) - 1)
        for number in range(ROUNDS):
            left, right = right, left ^ (_mixed(right, seed, epoch, number) & ((1 << half) - 1))
        k = left << half | right
        if k < size:
            return k


def _mixed(value: int, seed: int, epoch: int, number: int) -> int:
    """Mix all that decides by the finaliser of splitmix64: every bit of the result depends on every bit given."""
    mixed = (value * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9 + epoch * 0x94D049BB133111EB + number) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    return mixed ^ mixed >> 31


ALL = slice(None)
ORDERS = ("random", "epochs")
LEAST = 16  # tokens: a shorter context is no advice, the text is too short


class TokenArray(Protocol):
    """Tokens by place: an array, or the shards of a prepared folder."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> Any:
        """Return tokens at an array of places, in its shape."""
        ...


Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


class Dataset:
    """Packed tokens of a training and a validation side. B sequences of T tokens; targets are inputs one later.

    `description` is plain JSON for provenance: source, sha256, tokens, documents, tokenizer, versions.
    """

    def __init__(self, sides: Mapping[str, TokenArray], tokenizer: Tokenizer, description: dict[str, Any]) -> None:
        self._sides = sides
        self.tokenizer = tokenizer
        self.description = description

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self.tokenizer.vocab_size

    def tokens(self, split: str) -> int:
        """Say how many tokens a side has."""
        return len(self._sides[split])

    def check(self, context: int) -> None:
        """Raise `UserError` when a side is shorter than one sequence of `context` tokens and its targets."""
        if context < 1:
            raise UserError(f"the context must be at least 1 token, got {context}: set data.context")
        for split, side in self._sides.items():
            if len(side) < context + 1:
                longest = min(map(len, self._sides.values())) - 1
                more = "raise data.max_tokens" if "max_tokens" in self.description else "give more text"
                advice = f"set data.context to at most {longest}" if longest >= LEAST else more
                raise UserError(
                    f"the {split} text of {self.description['source']} has {len(side)} tokens, "
                    f"too few for a context of {context}: {advice}"
                )

    def batch(
        self, step: int, seed: int, batch_size: int, context: int, order: str = "random", rows: slice = ALL
    ) -> Batch:
        """Give (inputs [B, T], targets [B, T]), int64: windows of the training text, a pure function of (step, seed).

        order: "random" draws windows anywhere; "epochs" cuts the text into windows and shows each once an epoch, shuffled
        anew in every epoch. Neither needs a state: step s of any run, on any number of ranks, is this batch.
        rows: read only these sequences of the batch; a rank asks for its own.

        Raises `UserError` for an unknown order, and for a context that the text is too short for.
        """
        side = self._sides["train"]
        if not 0 < context < len(side):
            self.check(context)
        if order not in ORDERS:
            raise UserError(f"unknown order {order!r} of the data: {nearest(order, ORDERS)}")
        if order == "epochs":
            starts = context * shuffled(step * batch_size, batch_size, (len(side) - 1) // context, seed)
        else:
            rng = np.random.Generator(np.random.Philox(key=[seed, step]))
            starts = rng.integers(0, len(side) - context, batch_size)
        return _windows(side, starts[rows], context)

    def bookmark(self, step: int, batch_size: int, context: int) -> dict[str, int] | None:
        """Return what finds the batch of a step again quickly; None: any step is reached at once."""
        return None

    def restore(self, bookmark: dict[str, int] | None) -> None:
        """Take back a bookmark of an earlier process."""

    def validation_batches(self, batch_size: int, context: int, count: int) -> Iterator[Batch]:
        """Yield the same evenly spaced windows for every seed, without overlap; fewer than `count` of a short text."""
        side = self._sides["validation"]
        available = (len(side) - 1) // context
        wanted = min(count * batch_size, available)
        starts = (np.arange(wanted) * available // max(wanted, 1)) * context
        for first in range(0, wanted, batch_size):
            yield _windows(side, starts[first : first + batch_size], context)


def _windows(side: TokenArray, starts: NDArray[np.int64], context: int) -> Batch:
    window = side[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return window[:, :-1], window[:, 1:]


Item = TypeVar("Item")


class Prefetched(Generic[Item]):
    """`make(index)`, with the next `ahead` items made in a thread. Any index may be asked for; the next one is ready.

    One thread does all the work, in order, so `make` needs no lock. An error of `make` is raised where its item is asked
    for, not before. The item that was asked for last is kept: asking again costs nothing.

    >>> squares = Prefetched(lambda index: index**2, ahead=2)
    >>> [squares(index) for index in range(4)]
    [0, 1, 4, 9]
    >>> squares.close()
    """

    def __init__(self, make: Callable[[int], Item], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: dict[int, Future[Item]] = {}
        self._last: tuple[int, Item] | None = None

    def __call__(self, index: int) -> Item:
        """Return the item of `index`."""
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        future = self._coming.pop(index, None)
        if future is None:
            self._forget()
            future = self._pool.submit(self._make, index)
        item = future.result()
        self._last = index, item
        for later in range(index + 1, index + 1 + self._ahead):
            if later not in self._coming:
                self._coming[later] = self._pool.submit(self._make, later)
        return item

    def close(self) -> None:
        """Stop the thread; what it has in hand is finished first."""
        self._forget()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
