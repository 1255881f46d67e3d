"""A run's tokenizer as a fast tokenizer of transformers: the same ids, the separator as end, start and padding."""

from __future__ import annotations

import json
from typing import Any

from loopscale.data.tokenizer import Tokenizer
from loopscale.errors import transformers

SEPARATOR = "<|separator|>"


def fast_tokenizer(tokenizer: Tokenizer, context: int | None = None) -> Any:
    """Return a `PreTrainedTokenizerFast` with the ids of `tokenizer` for every text without zero characters.

    A text that spells the separator is text: special tokens are not looked for in texts. `context` becomes
    `model_max_length`.

    >>> from loopscale.data.tokenizer import ByteTokenizer
    >>> fast_tokenizer(ByteTokenizer())("loop")["input_ids"]
    [108, 111, 111, 112]
    """
    record = json.loads(tokenizer.to_json())
    from tokenizers import Tokenizer as Model

    model = _bytes() if record["tokenizer"] == "bytes" else Model.from_str(json.dumps(record["model"]))
    model.encode_special_tokens = True
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **({} if context is None else {"model_max_length": context}),
    )


def _bytes() -> Any:
    """Return the vocabulary: token b is byte b, spelt by the character that stands for it; byte 0 is the separator."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    characters = _byte_characters()
    vocabulary = {SEPARATOR: 0, **{characters[byte]: byte for byte in range(1, 256)}}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(SEPARATOR, special=True, normalized=False)])
    return model


def _byte_characters() -> list[str]:
    """Give the character that byte-level BPE writes for each byte: printable ones stand for themselves.

    Source: the byte-to-unicode table of GPT-2's encoder.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
