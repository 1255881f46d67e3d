"""Synthetic text that is the same on every machine: the ground of golden numbers, and tasks where depth is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from loopscale.errors import UserError, nearest

LINES, DOCUMENTS = 256, 400


def _copy(rng: np.random.Generator) -> str:
    word = "".join(chr(97 + k) for k in rng.integers(0, 26, rng.integers(3, 10)))
    return f"{word}>{word}"


def _addition(rng: np.random.Generator) -> str:
    a, b = (int(k) for k in rng.integers(0, 100_000, 2))
    return f"{a}+{b}={a + b}"


def _permutation(rng: np.random.Generator) -> str:
    """Walk k steps along a permutation of ten digits: the answer needs k sequential look-ups."""
    table, start, steps = rng.permutation(10), int(rng.integers(10)), int(rng.integers(1, 7))
    at = start
    for _ in range(steps):
        at = int(table[at])
    return f"{''.join(map(str, table))} {start}^{steps}={at}"


TASKS: dict[str, Callable[[np.random.Generator], str]] = {
    "copy": _copy,
    "addition": _addition,
    "permutation": _permutation,
}


def synthetic_documents(task: str) -> Iterator[str]:
    """Yield 400 documents of 256 lines of the task, from a fixed seed.

    Raises `UserError` for an unknown task, with the nearest.

    >>> next(synthetic_documents("copy")).splitlines()[0].count(">")
    1
    """
    if task not in TASKS:
        raise UserError(f"unknown synthetic task {task!r}: {nearest(task, TASKS)}")
    return (_document(TASKS[task], number) for number in range(DOCUMENTS))


def _document(line: Callable[[np.random.Generator], str], number: int) -> str:
    rng = np.random.Generator(np.random.PCG64(number))
    return "\n".join(line(rng) for _ in range(LINES)) + "\n"
