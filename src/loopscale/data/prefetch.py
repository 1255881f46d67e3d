"""Batches made while the step before is computed, so that the device does not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

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
