"""The growth law of the stream: bounded, sqrt, linear or exponential, with the fitted exponent and its interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The stream may grow by this much over the visits, and by more where its law is bounded; over N by this power.
GAIN, OVER = 2.0, 0.25
# |F(c h)| / |c h| at large c: below, something inside the loop sets the size of the stream; below the second, a norm does.
CONTRACTIVE, RESET = 0.97, 0.3


@dataclass(frozen=True)
class Far:
    """|h| after one visit and after all the `visits` that follow, against a large stream that was put in their place.

    One visit alone misleads where it hands on a part of the stream only: an intermediate of an integrator, a sum over all
    states. `visit`: 1 pre-norm, 0 when a norm resets the stream, 2 nested skip, below 1 contractive. `drifts`: a visit
    takes the less away the more there are, as steps of 1/N along -h do: that bounds no stream.
    """

    visit: float
    last: float
    visits: int
    drifts: bool = False

    @property
    def contracts(self) -> bool:
        """Whether visits take the size of the stream away: all together, since a norm may act at some of them only."""
        return self.last < CONTRACTIVE

    @property
    def most(self) -> float:
        """The factor of one visit, or that of each of all where it is larger."""
        return max(self.visit, self.last ** (1 / self.visits)) if math.isfinite(self.last) else self.visit


@dataclass(frozen=True)
class Growth:
    """`norms` of the stream before the first visit and after each; `exponent` p in |h_n - h_0| ~ n^p."""

    law: str
    gain: float
    exponent: float | None
    interval: tuple[float, float] | None
    norms: tuple[float, ...]
    moved: tuple[float, ...]

    @property
    def movement(self) -> float:
        """|h_N - h_0| / |h_0|."""
        return self.moved[-1] / max(self.norms[0], 1e-30)

    @property
    def rises(self) -> bool:
        """Whether the stream moves on at the last visits as at the first, and grows at each of them."""
        late = self.norms[len(self.norms) // 2 :]
        grows = len(late) > 2 and all(b > a for a, b in itertools.pairwise(late)) and late[-1] > 1.1 * late[0]
        return grows and self.exponent is not None and self.exponent > 0.75

    @property
    def climbs(self) -> bool:
        """Whether the largest size so far grows as n to the end, at whatever visits: two states may take turns."""
        start = len(self.norms) // 2
        peaks = list(itertools.accumulate(self.norms, max))[start:]
        fit = power_fit(range(start, len(self.norms)), peaks) if len(peaks) > 3 else None
        return GAIN < self.gain < math.inf and fit is not None and fit[0] > 0.75

    @property
    def unbounded(self) -> str:
        """The law that fits the visits, where the stream is known to grow."""
        if not math.isfinite(self.gain) or _compounds(self.norms, self.gain):
            return "exponential"
        return "sqrt" if self.exponent is not None and self.exponent < 0.75 else "linear"

    @property
    def beyond(self) -> bool:
        """Whether the stream grows beyond its limit."""
        return self.gain > GAIN and self.law != "bounded"


def power_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, tuple[float, float]] | None:
    """Return the slope of log y over log x with a 95 % interval; None for fewer than two usable points.

    >>> slope, interval = power_fit([1, 2, 4, 8], [3, 6, 12, 24])
    >>> round(slope, 6)
    1.0
    """
    pairs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if a > 0 and 0 < b < math.inf]
    if len(pairs) < 2:
        return None
    u, v = np.array(pairs).T
    slope, intercept = np.polyfit(u, v, 1)
    rest = v - slope * u - intercept
    spread = float(((u - u.mean()) ** 2).sum())
    free = max(len(pairs) - 2, 1)
    error = math.sqrt(float((rest**2).sum()) / free / spread) if spread else math.inf
    width = 1.96 * error * (1 + 4 / free if free < 8 else 1)
    return float(slope), (float(slope) - width, float(slope) + width)


def growth_law(
    norms: Sequence[float],
    moved: Sequence[float],
    time: float | None = None,
    far: Far | None = None,
    whole: float | None = None,
) -> Growth:
    """Classify the stream over the visits of one pass.

    `norms[n]` = |h_n|, `moved[n]` = |h_n - h_0|, n = 0..N. `time` is N * eps, the sum of a branch's scales over the
    visits; `far`: what they do to a large stream; `whole` is |h_0| and all that the branches would add in one visit
    without a scale. Bounded: `far` contracts; or `time` of about 1 and a stream that stays near `whole`, since more visits
    would then not add more; or a gain under 1.1 (under 2 where `time` is not known); or a movement that has come to rest
    (exponent under 0.25). Exponential: each visit adds more than the one before, by a factor of at least 2 in all.
    Between them |h_n - h_0| ~ n^p: sqrt below p = 0.75, linear above.
    """
    gain = norms[-1] / norms[0] if norms[0] > 0 else math.inf
    if not all(math.isfinite(value) for value in norms):
        return Growth("exponential", math.inf, None, None, tuple(norms), tuple(moved))
    visits = len(norms) - 1
    start = max(1, visits // 2) if visits > 3 else 1
    fit = power_fit(range(start, visits + 1), moved[start:])
    exponent, interval = fit if fit else (None, None)
    near = norms[-1] <= 3 * (norms[0] if whole is None else whole)
    law = "bounded" if far is not None and far.contracts else _law(norms, gain, exponent, time, near)
    return Growth(law, gain, exponent, interval, tuple(norms), tuple(moved))


def _law(norms: Sequence[float], gain: float, exponent: float | None, time: float | None, near: bool) -> str:
    if _compounds(norms, gain):
        return "exponential"
    still = gain < (2 if time is None else 1.1)
    if still or (time is not None and time <= 1.5 and near) or (exponent is not None and exponent < 0.25):
        return "bounded"
    if exponent is None:
        return "linear"
    return "sqrt" if exponent < 0.75 else "linear"


def _compounds(norms: Sequence[float], gain: float) -> bool:
    rises = [b - a for a, b in itertools.pairwise(norms)]
    visits = len(rises)
    if gain <= (2.5 if visits <= 2 else 3.5) or any(rise <= 0 for rise in rises[visits // 2 :]):
        return False
    half = rises[: max(visits // 2, 1)]
    total = rises[-1] / max(sum(half) / len(half), 1e-30)
    # A straight line h_0 + n u has |h_n| / |h_{n-1}| -> 1 + 1/n; a factor that stays above that compounds.
    return total > 2 and norms[-1] / norms[-2] > 1 + 1.6 / visits


def grows_with(loops: Sequence[int], gains: Sequence[float]) -> bool:
    """Say whether the stream ends beyond its limit, and the further the more loops: from its two largest numbers of them.

    >>> grows_with([4, 8, 16], [2.0, 2.6, 3.5]), grows_with([4, 8, 16], [1.7, 2.0, 2.2])
    (True, False)
    """
    fit = power_fit(loops[-2:], gains[-2:])
    return fit is not None and gains[-1] > GAIN and fit[0] > OVER


def law_over_loops(loops: Sequence[int], moved: Sequence[float]) -> tuple[str, float | None]:
    """Return the law of |h_N - h_0| / |h_0| over the number of loops N, from one pass at each N, with its exponent.

    >>> law_over_loops([2, 4, 8], [2.0, 4.0, 8.0])[0]
    'linear'
    """
    if any(not math.isfinite(value) for value in moved):
        return "exponential", None
    fit = power_fit(loops, moved)
    if fit is None:
        return "bounded", None
    last = power_fit(loops[-2:], moved[-2:])
    slope = last[0] if last else fit[0]
    if slope > 1.7:
        return "exponential", fit[0]
    return ("bounded" if slope < 0.25 else "sqrt" if slope < 0.75 else "linear"), fit[0]
