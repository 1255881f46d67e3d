"""A shuffle without a table: the k-th element of a permutation of n things, computed from the seed alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
