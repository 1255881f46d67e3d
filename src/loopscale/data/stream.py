"""A source read while training, in its own order: nothing is packed, any size will do.

The documents of the training side, tokenized and joined, are one endless stream (after the last comes the first again).
Step s of B sequences of T tokens takes tokens s*B*T to (s+1)*B*T of it: a function of the step, whatever the number of
ranks. A bookmark (which document, which token of it) reaches a step without tokenizing all before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.data.dataset import ALL, Batch, Dataset
from loopscale.data.documents import Reading, Source, find_source
from loopscale.data.prepared import text_sha256
from loopscale.data.split import side_of
from loopscale.data.tokenizer import SEPARATOR, Tokenizer
from loopscale.errors import UserError

SCAN = 20_000  # documents that are searched for validation text before training begins
AT_ONCE = 2**20  # tokens that are passed over at once
MARKS = 64  # bookmarks kept: of the last steps, so that a checkpoint finds its own although batches are read ahead


class Stream(Dataset):
    """The stream as a data set. `seed` changes nothing: the order is the source's.

    Assumption: the source yields the same documents in the same order each time; every rank reads all of it.
    """

    def __init__(self, source: Source, reading: Reading) -> None:
        words = reading.make_tokenizer(source)
        self._source, self._fraction, self._field = source, reading.validation_fraction, reading.text_field
        description = {
            "source": f"stream:{source.shown}",
            "sha256": text_sha256(f"{source.identity} {words.to_json()} {self._fraction} {self._field}"),
            "tokenizer": words.name,
            "vocab_size": words.vocab_size,
        }
        super().__init__({}, words, description)
        self._marks: dict[int, dict[str, int]] = {0: {"token": 0, "document": 0, "offset": 0}}
        self._cursor: _Cursor | None = None
        self._held: list[NDArray[np.int64]] = []  # the last token that was given: the next step's first input
        self._begin = 0

    def tokens(self, split: str) -> int:
        """Raise `UserError`: a stream does not know its length."""
        raise UserError("a stream does not know how many tokens it has: prepare the data to count them")

    def check(self, context: int) -> None:
        """Raise `UserError` when there is no text to train on."""
        if context < 1:
            raise UserError(f"the context must be at least 1 token, got {context}: set data.context")
        if next(self._training(0), None) is None:
            raise UserError(f"{self.description['source']} has no training text: give more text")

    def batch(
        self, step: int, seed: int, batch_size: int, context: int, order: str = "random", rows: slice = ALL
    ) -> Batch:
        """Do as `Dataset.batch`; the next step is cheap. Raises `UserError` for order "epochs"."""
        if order != "random":
            raise UserError("a stream is read in its own order: leave data.order out")
        size, begin = batch_size * context, step * batch_size * context
        if self._cursor is None or self._begin != begin:
            self._seek(begin)
        assert self._cursor is not None
        found = [*self._held, *self._cursor.take(size - sum(map(len, self._held)))]
        self._begin = begin + size
        self._mark()
        self._held = self._cursor.take(1)
        window = np.concatenate([*found, *self._held])
        inputs_BT, targets_BT = window[:-1].reshape(batch_size, context), window[1:].reshape(batch_size, context)
        return inputs_BT[rows].copy(), targets_BT[rows].copy()

    def validation_batches(self, batch_size: int, context: int, count: int) -> Iterator[Batch]:
        """Return batches of the first validation documents, always the same; at most 20,000 documents are searched."""
        wanted, found, size = count * batch_size * context + 1, [], 0
        for document in islice(self._source.documents(self._field), SCAN):
            if size >= wanted:
                break
            if document and side_of(document, self._fraction) == "validation":
                found.append(_tokens(self.tokenizer, document))
                size += len(found[-1])
        whole = np.concatenate([np.zeros(0, np.int64), *found])[:wanted]
        rows = max(len(whole) - 1, 0) // context
        inputs, targets = (whole[k : k + rows * context].reshape(rows, context) for k in (0, 1))
        for first in range(0, rows, batch_size):
            yield inputs[first : first + batch_size], targets[first : first + batch_size]

    def bookmark(self, step: int, batch_size: int, context: int) -> dict[str, int] | None:
        """Return where step `step` begins: its token, and the document and the token of the document that is there."""
        return self._marks.get(step * batch_size * context)

    def restore(self, bookmark: dict[str, int] | None) -> None:
        """Take back a bookmark of an earlier process."""
        if bookmark is not None:
            self._marks[bookmark["token"]] = bookmark

    def _seek(self, token: int) -> None:
        mark = self._marks[max(known for known in self._marks if known <= token)]
        self._cursor, self._held, self._begin = _Cursor(self, mark), [], token
        for left in range(token - mark["token"], 0, -AT_ONCE):
            self._cursor.take(min(left, AT_ONCE))

    def _mark(self) -> None:
        """Note where the next step begins."""
        assert self._cursor is not None
        document, offset = self._cursor.place
        self._marks[self._begin] = {"token": self._begin, "document": document, "offset": offset}
        for old in sorted(self._marks)[1:-MARKS]:
            del self._marks[old]

    def _training(self, skip: int) -> Iterator[tuple[int, str]]:
        """Return documents of the training side with their number in the source, from number `skip` on."""
        for number, document in enumerate(islice(self._source.documents(self._field), skip, None), start=skip):
            if document and side_of(document, self._fraction) == "train":
                yield number, document

    def endless(self, document: int, offset: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Return (document, first token, tokens) for ever, from a place on."""
        while True:
            empty = True
            for number, text in self._training(document):
                empty = False
                first = offset if number == document else 0
                yield number, first, _tokens(self.tokenizer, text)[first:]
            if empty and document == 0:
                raise UserError(f"{self.description['source']} has no training text: give more text")
            document, offset = 0, 0


class _Cursor:
    """Reads on from a bookmark; `place` is the document that the next token is in, and the token of it."""

    def __init__(self, stream: Stream, mark: dict[str, int]) -> None:
        self.place = mark["document"], mark["offset"]
        self._pieces = stream.endless(*self.place)
        self._tokens = np.zeros(0, np.int64)

    def take(self, count: int) -> list[NDArray[np.int64]]:
        """Return the next `count` tokens, in pieces."""
        taken: list[NDArray[np.int64]] = []
        while count > 0:
            if not len(self._tokens):
                number, first, self._tokens = next(self._pieces)
                self.place = number, first
            taken.append(self._tokens[:count])
            self._tokens, count = self._tokens[count:], count - len(taken[-1])
            self.place = self.place[0], self.place[1] + len(taken[-1])
        return taken


def open_stream(name: str, reading: Reading) -> Stream:
    """Open a source as a stream; raises `UserError` when it cannot be read or a limit is asked for."""
    if reading.max_tokens is not None:
        raise UserError("a stream has no end, data.max_tokens cannot shorten it: leave it out")
    stream = Stream(find_source(name), reading)
    stream.check(1)
    return stream


def _tokens(words: Tokenizer, text: str) -> NDArray[Any]:
    return np.append(words.encode(text), SEPARATOR)
