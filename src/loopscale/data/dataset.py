"""Batches as a pure function of seed and step, from packed tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loopscale.data.order import shuffled
from loopscale.data.tokenizer import Tokenizer
from loopscale.errors import UserError, nearest

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
        """Return the same evenly spaced windows for every seed, without overlap.

        Fewer than `count` when the text is short.
        """
        side = self._sides["validation"]
        available = (len(side) - 1) // context
        wanted = min(count * batch_size, available)
        starts = (np.arange(wanted) * available // max(wanted, 1)) * context
        for first in range(0, wanted, batch_size):
            yield _windows(side, starts[first : first + batch_size], context)


def _windows(side: TokenArray, starts: NDArray[np.int64], context: int) -> Batch:
    window = side[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return window[:, :-1], window[:, 1:]
