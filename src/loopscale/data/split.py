"""Which documents are for training and which for validation, and how many are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain

from loopscale.data.documents import Reading, Source
from loopscale.data.tokenizer import Tokenizer


def split_source(source: Source, reading: Reading, words: Tokenizer) -> Iterator[tuple[str, str]]:
    """Return ("train" | "validation", document) of a source, as much of it as the reading asks for."""
    documents = (document for document in source.documents(reading.text_field) if document)
    return split_documents(limited(documents, words, reading.max_tokens), reading.validation_fraction)


def split_documents(documents: Iterable[str], validation_fraction: float) -> Iterator[tuple[str, str]]:
    """Return ("train" | "validation", document): by hash of the document, so a document never moves between runs.

    Where the hash would leave a side empty (always with a single document), the longest document is cut in two at a
    line boundary, so that both sides have text. Assumption: the documents before both sides are met fit in memory.

    >>> [side for side, text in split_documents(["one, two"], 0.5)]
    ['train', 'validation']
    """
    waiting: list[str] = []
    sides: set[str] = set()
    rest = iter(documents)
    for document in rest:
        waiting.append(document)
        sides.add(side_of(document, validation_fraction))
        if len(sides) == 2:
            break
    if len(sides) == 1:
        yield from _with_a_cut(waiting, validation_fraction)
        return
    for document in chain(waiting, rest):
        yield side_of(document, validation_fraction), document


def limited(documents: Iterable[str], tokenizer: Tokenizer, max_tokens: int | None) -> Iterator[str]:
    """Return the first documents that make at most `max_tokens` tokens, separators counted; the last one is shortened."""
    if max_tokens is None:
        yield from documents
        return
    room = max_tokens - 1  # a document that `split_documents` cuts in two has one more separator
    for document in documents:
        size = len(tokenizer.encode(document)) + 1
        if size > room:
            yield from _shortened(document, tokenizer, room)
            return
        yield document
        room -= size


def _shortened(document: str, tokenizer: Tokenizer, room: int) -> Iterator[str]:
    """Return the beginning of a document that makes, with its separator, at most `room` tokens; nothing when none does."""
    while document and (size := len(tokenizer.encode(document))) > room - 1:
        document = document[: min(len(document) - 1, len(document) * max(room - 1, 0) // size)]
    if document:
        yield document


def side_of(document: str, fraction: float) -> str:
    """Return "train" or "validation", by hash of the document."""
    digest = hashlib.sha256(document.encode("utf-8", errors="replace")).digest()
    return "validation" if int.from_bytes(digest[:8], "big") < fraction * 2**64 else "train"


def _with_a_cut(documents: list[str], fraction: float) -> Iterator[tuple[str, str]]:
    """Put all documents on the larger side, but for the part of the longest that brings the other to its fraction.

    Where that is more than half of the longest, half: several short documents cannot be split better. Of documents of one
    length the last in the alphabet is taken, so that the order of the documents does not matter.
    """
    side = "train" if fraction <= 0.5 else "validation"
    longest = max(range(len(documents)), key=lambda number: (len(documents[number]), documents[number]))
    share = fraction  # what part of the longest is for validation; alone, exactly the fraction
    if len(documents) > 1:
        scale = sum(map(len, documents)) / len(documents[longest])
        share = min(fraction * scale, 0.5) if side == "train" else 1 - min((1 - fraction) * scale, 0.5)
    for number, document in enumerate(documents):
        if number == longest:
            yield from _cut(document, share)
        else:
            yield side, document


def _cut(document: str, fraction: float) -> Iterator[tuple[str, str]]:
    """Cut after the line that reaches the target, or before it, or, where lines are too long for that, inside it."""
    size = len(document)
    target = max(1, min(round(size * (1 - fraction)), size - 1))
    after, before = document.find("\n", target) + 1, document.rfind("\n", 0, target) + 1
    if after and size - after >= (size - target) / 2:
        at = after
    elif before >= target / 2:
        at = before
    else:
        at = target
    yield from ((side, text) for side, text in (("train", document[:at]), ("validation", document[at:])) if text)
