"""Train a stack in memory to its end: each member leaves when it has come to its end, is lost, or is stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from loopscale.batched.batched import Stack
from loopscale.train.fit import Course, Fit, Stop
from loopscale.train.training import stream_rms


def fit_stack(stack: Stack, stops: Sequence[Stop | None] | None = None) -> Iterator[tuple[int, Fit]]:
    """Yield (place in the stack at first, `Fit`) of each member as it leaves; the same `Fit` that it has alone.

    On a CPU in fp32 the losses of the house model are bitwise those of `fit`; in bf16, on a GPU and for user models they
    agree to rounding. `seconds` is a member's share: a step's time is divided by the members that took it.

    stops: of each member, asked after each of its steps with the record; True ends its training there.

    Raises `UnstackableError`, before the first step or at it, where the members cannot share a graph.
    """
    clock = _Clock()
    places = {id(member): place for place, member in enumerate(stack.members)}
    initial = [stream_rms(member.training) for member in stack.members]
    steps = [member.config.train.steps for member in stack.members]
    courses = [Course(n, stop) for n, stop in zip(steps, stops or [None] * len(steps), strict=True)]
    shares = [clock.lap() / len(steps)] * len(steps)
    while stack.members:
        at = [places[id(member)] for member in stack.members]
        records = stack.step()
        for place, record in zip(at, records, strict=True):
            courses[place].take(record)
        gone = [k for k, place in enumerate(at) if not courses[place].running]
        whole = any(courses[at[k]].whole for k in gone)
        values = stack.evaluate() if whole else [None] * len(at)
        left = [stack.members[k] for k in gone]
        if gone:
            stack.leave(gone)
        final = [stream_rms(member.training) for member in left]
        lap = clock.lap() / len(at)
        for place in at:
            shares[place] += lap
        for k, streams in zip(gone, final, strict=True):
            done = records[k].step if records[k].finite else records[k].step - 1
            yield at[k], courses[at[k]].fit(values[k], done, shares[at[k]], initial[at[k]], streams)
        clock.lap()  # what the caller does with a result is nobody's time


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return seconds since the last call."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before
