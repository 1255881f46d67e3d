"""Numbers in words: as many digits as their interval supports, and a reason where there is no interval."""

from __future__ import annotations

import math
from collections.abc import Sequence


def spoken(value: float, interval: Sequence[float] | None = None) -> str:
    """Return a value and its 95 % interval, rounded to what the interval supports.

    >>> spoken(0.006473, [0.006142, 0.006754])
    '0.0065 [0.0061, 0.0068]'
    >>> spoken(0.006473, [0.00646, 0.00648])
    '0.00647 [0.00646, 0.00648]'
    >>> spoken(0.006473)
    '0.0065'
    """
    if interval is None:
        return f"{value:.2g}"
    low, high = interval
    width = (high - low) / max(abs(value), 1e-300)
    digits = 2 if width >= 0.03 else min(4, -math.floor(math.log10(max(width, 1e-9))))
    if f"{low:.{digits}g}" == f"{high:.{digits}g}":
        return f"{value:.{digits}g} (to these digits)"
    return f"{value:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def nats(regret: float, interval: Sequence[float] | None) -> str:
    """Return a regret with its interval, or why there is none.

    >>> nats(0.0012, [0.0004, 0.003]), nats(0.0012, None)
    ('0.0012 nats [0.0004, 0.0030]', '0.0012 nats, no interval as no noise is known')
    """
    if interval is None:
        return f"{regret:.4f} nats, no interval as no noise is known"
    low, high = (f"{end:.4f}" for end in interval)
    return f"{regret:.4f} nats" + (" (to these digits)" if low == high else f" [{low}, {high}]")


def in_seed_noise(regret: float, seed_noise: float | None) -> str:
    """Return a regret in units of the seed noise.

    >>> in_seed_noise(0.0012, 0.01), in_seed_noise(0.0012, None)
    ('0.12 of the seed noise', 'the seed noise is not known')
    """
    if seed_noise is None:
        return "the seed noise is not known"
    return f"{regret / seed_noise:.2g} of the seed noise" if seed_noise else "seeds change nothing"
