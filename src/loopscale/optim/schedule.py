"""Learning-rate schedules as functions of the step: multipliers of each group's `initial_lr`."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

from loopscale.errors import UserError, nearest

_DECAY_SHARE = 0.2  # of the steps, in warm-up-stable-decay


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(progress: float) -> float:
    return 1.0


def _stable_decay(progress: float) -> float:
    return min(1.0, (1.0 - progress) / _DECAY_SHARE)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _stable_decay,
}


def schedule(name: str, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """Return the multiplier in (0, 1] at 0-based `step`: linear warm-up over `warmup` steps, then the named decay.

    The multiplier is positive on every step of 0..steps-1: none is wasted at rate 0.

    Raises `UserError` for an unknown name, a number of steps that is not whole, steps < 1, or a warm-up as long as the
    run.

    >>> rate = schedule("linear", steps=10, warmup=2)
    >>> [rate(0), rate(1), rate(2)]
    [0.5, 1.0, 1.0]
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule {name!r}: {nearest(str(name), SCHEDULES)}")
    for word, count in (("steps", steps), ("warmup", warmup)):
        if isinstance(count, bool) or not isinstance(count, Integral):
            share = f": for a share of the run give warmup={round(count * steps)}" if _is_share(count, steps) else ""
            raise UserError(f"{word} counts steps and is a whole number, got {word}={count!r}{share}")
    if steps < 1 or not 0 <= warmup < steps:
        raise UserError(f"a schedule needs steps >= 1 and 0 <= warmup < steps, got steps={steps}, warmup={warmup}")
    shape = SCHEDULES[name]

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return shape(min(step - warmup, steps - warmup - 1) / (steps - warmup))

    return multiplier


def _is_share(count: object, steps: object) -> bool:
    return isinstance(count, float) and 0 < count < 1 and isinstance(steps, int)
