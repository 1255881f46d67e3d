"""How a source is read: with which tokenizer, and how much of it for validation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from loopscale.data.documents import Source
from loopscale.data.tokenizer import BPE_SAMPLE, Tokenizer, make_tokenizer
from loopscale.errors import UserError


@dataclass(frozen=True)
class Reading:
    """What decides the tokens of a source; `load_data` takes each as a keyword.

    max_tokens: read no more than this; the last document is shortened to fit. text_field: of JSONL, parquet and data sets.

    Raises `UserError` for values out of range.
    """

    tokenizer: str = "bytes"
    vocab_size: int | None = None
    validation_fraction: float = 0.05
    max_tokens: int | None = None
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction!r}")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UserError(
                f"max_tokens must be at least 2, got {self.max_tokens!r}: leave it out to read all of the text"
            )

    def make_tokenizer(self, source: Source) -> Tokenizer:
        """Make the tokenizer, from the first documents where it has to be trained."""
        sample = islice(source.documents(self.text_field), BPE_SAMPLE)
        return make_tokenizer(self.tokenizer, self.vocab_size, sample)
