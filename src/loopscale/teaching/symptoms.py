"""Symptoms in words: the row of symptoms.toml that a sentence describes best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SAYS_NOTHING = frozenset(
    "a an and are as at be but by can for from get gets getting goes has have i in is it its my of on or our so that"
    " the this to was we what when why will with becomes become does do did model".split()
)


def matching(asked: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the rows whose words the sentence holds, best first; none where fewer than two words fit.

    A word counts the more, the fewer rows have it; endings do not matter ("explodes", "exploding").
    """
    words = {_stem(word) for word in _words(asked)}
    texts = [{_stem(word) for word in _words(f"{row['words']} {row['title']}")} for row in rows]
    scored = []
    for row, text in zip(rows, texts, strict=True):
        common = words & text
        weight = sum(1 / sum(word in other for other in texts) for word in common)
        if len(common) >= min(2, len(words)):
            scored.append((weight, row))
    return [row for weight, row in sorted(scored, key=lambda pair: -pair[0]) if weight > 0]


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9_]+", text.lower()) if word not in _SAYS_NOTHING]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
