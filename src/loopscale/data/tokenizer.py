"""Text to tokens and back: bytes, or a byte-level BPE trained on the spot."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopscale.errors import UserError, nearest

Tokens = NDArray[np.int64]
INT64 = np.dtype(np.int64)
BPE_SAMPLE = 2000  # documents that a BPE is trained on
SEPARATOR = 0  # the token between documents; text of ours has no zero bytes


class Tokenizer(ABC):
    """What turns text into tokens. `decode(encode(text)) == text` for any text without zero characters."""

    name: str
    vocab_size: int

    def encode(self, text: str) -> Tokens:
        """Give the tokens [T] of a text, none of which is the separator; a lone surrogate becomes '?'."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: list[str], kind: np.dtype[Any] = INT64) -> list[NDArray[Any]]:
        """Give the tokens of each text, as `encode` does, as numbers of a `kind`; on all cores where that helps."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """Give the text of tokens; bytes that make no character become U+FFFD."""

    @abstractmethod
    def to_json(self) -> str:
        """Give a text from which `tokenizer_from_json` makes it again."""


# A space or line end between two printable characters: no token of a byte-level BPE reaches over its beginning.
_SEAM = re.compile(r"(?<=[!-~])(?=[ \n][!-~])")
PIECE = 2**17  # characters of a piece
AT_ONCE = 2**22  # characters encoded at once: the library keeps 100 bytes for each token


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text where no token reaches over, so that all cores share it and memory is flat."""
    whole, begin = text.encode("utf-8", errors="replace").decode("utf-8"), 0
    while len(whole) - begin > PIECE and (seam := _SEAM.search(whole, begin + PIECE)) is not None:
        yield whole[begin : seam.start()]
        begin = seam.start()
    yield whole[begin:]


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes; the vocabulary is 256, and byte 0 separates documents.

    >>> ByteTokenizer().decode(ByteTokenizer().encode("loop"))
    'loop'
    """

    name = "bytes"
    vocab_size = 256

    def encode_batch(self, texts: list[str], kind: np.dtype[Any] = INT64) -> list[NDArray[Any]]:
        """Give the tokens of each text."""
        return [np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(kind) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """Reverse `encode`."""
        return bytes(int(token) for token in tokens).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Give nothing but its name."""
        return json.dumps({"tokenizer": "bytes"})


class BPETokenizer(Tokenizer):
    """Byte-level BPE by the `tokenizers` library; token 0 separates documents."""

    name = "bpe"

    def __init__(self, model: Any) -> None:
        model.encode_special_tokens = True  # a text that spells the separator is text; to_json does not keep this
        self._model = model
        self.vocab_size = int(model.get_vocab_size())

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn `vocab_size` tokens from the documents. Deterministic. Raises `UserError` below 257 tokens."""
        from tokenizers import Tokenizer as Model
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if not isinstance(vocab_size, int) or vocab_size < 257:
            raise UserError(
                f"a byte-level BPE needs data.vocab_size of at least 257 (256 bytes and a separator), got {vocab_size!r}"
            )
        model = Model(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<|separator|>"], initial_alphabet=alphabet, show_progress=False
        )
        model.train_from_iterator((piece for text in documents for piece in _pieces(text)), trainer)
        return cls(model)

    def encode_batch(self, texts: list[str], kind: np.dtype[Any] = INT64) -> list[NDArray[Any]]:
        """Give the tokens of each text; the library works on all cores, on pieces that do not grow with the text."""
        pieces = [(number, piece) for number, text in enumerate(texts) for piece in _pieces(text)]
        found: list[list[NDArray[Any]]] = [[] for _ in texts]
        while pieces:
            size, count = 0, 0
            while count < len(pieces) and size < AT_ONCE:
                size, count = size + len(pieces[count][1]), count + 1
            now, pieces = pieces[:count], pieces[count:]
            encoded = self._model.encode_batch_fast([piece for _, piece in now], add_special_tokens=False)
            for (number, _), one in zip(now, encoded, strict=True):
                found[number].append(np.array(one.ids, dtype=kind))
        return [np.concatenate(parts) if parts else np.zeros(0, kind) for parts in found]

    def decode(self, tokens: Iterable[int]) -> str:
        """Reverse `encode`."""
        return str(self._model.decode([int(token) for token in tokens], skip_special_tokens=False))

    def to_json(self) -> str:
        """Give the library's own description."""
        return json.dumps({"tokenizer": "bpe", "model": json.loads(self._model.to_str())})


def make_tokenizer(name: str, vocab_size: int | None, documents: Iterator[str]) -> Tokenizer:
    """Make a tokenizer, BPE from the documents; raises `UserError` for an unknown name or a vocabulary it cannot have."""
    if name == "bytes":
        if vocab_size not in (None, 256):
            raise UserError(
                f"the bytes tokenizer has 256 tokens, not {vocab_size}: leave data.vocab_size out, or use tokenizer 'bpe'"
            )
        return ByteTokenizer()
    if name == "bpe":
        return BPETokenizer.train(documents, 1024 if vocab_size is None else vocab_size)
    raise UserError(f"unknown tokenizer {name!r}: {nearest(name, ('bytes', 'bpe'))}")


def tokenizer_from_json(text: str) -> Tokenizer:
    """Reverse `to_json`. Raises `UserError` for a text that is none of ours."""
    try:
        record = json.loads(text)
        if record["tokenizer"] == "bytes":
            return ByteTokenizer()
        from tokenizers import Tokenizer as Model

        return BPETokenizer(Model.from_str(json.dumps(record["model"])))
    except Exception:  # the library raises bare Exception
        raise UserError("the stored tokenizer is damaged: restore the file, or train again") from None
