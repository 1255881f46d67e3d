"""Vary N on the model as it is: growth over N, how eps follows N, and the law if it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loopscale.diagnosis.branches import Branch
from loopscale.diagnosis.growth import RESET, Growth, grows_with, law_over_loops, power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass, anew, far_gain
from loopscale.diagnosis.setting import Factors, Setting, at_each

# A stream that grows by less than this at every N has no law of growth worth a name.
STILL = 1.1
# A scale that falls more slowly than N^-0.1 does not follow N.
FROZEN = 0.1
# The exponent over N of what a visit takes from a large stream: 0 for a carry, -1 for a drift by 1/N; one by 1/sqrt(N)
# forgets all of it at many visits, as a carry does.
DRIFT = -0.6


@dataclass(frozen=True)
class OverLoops:
    """Gain and eps at each N, the law of the stream's movement over N. `scale_power`: a in eps ~ N^-a.

    `followed`: the exponent of the movement with eps made to follow N, where the model's own does not.
    """

    loops: tuple[int, ...]
    gains: tuple[float, ...]
    law: str | None
    exponent: float | None
    scale_power: float | None
    followed: float | None = None

    @property
    def grows(self) -> bool:
        """Whether the stream ends beyond its limit, and the further the more loops."""
        return grows_with(self.loops, self.gains)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        told = {**asdict(self), "loops": list(self.loops), "gains": list(self.gains)}
        del told["law"]
        return told


def counts_around(own: int) -> list[int]:
    """Return N/2, N and 2N, at small N up to 8, or fewer where N is large."""
    if own >= 12:
        return sorted({max(own // 4, 2), own // 2, own})
    return sorted({max(own // 2, 2), own, 2 * own, *([4, 8] if own <= 4 else [])})


KINDS = ("branch", "inject")


def following(seen: Pass, count: int, beside: Sequence[Branch] = (), kinds: Sequence[str] = KINDS) -> Factors:
    """Give the factors by which a scale that is right at the pass's own N is right at `count`; of loops `beside` it too."""
    return {
        site: (b.operand, seen.loop.visits / count)
        for b in (*seen.branches, *beside)
        if b.kind in kinds and b.operand >= 0 and b.scale < 0.9
        for site in b.sites
    }


def over_loops(setting: Setting, knob: Knob, own_pass: Pass) -> OverLoops | None:
    """Measure at other numbers of loops; None when it cannot be varied.

    `own_pass` is the one already measured at the model's own N. Where a norm or a contractive carry sets the size of the
    stream, its law is bounded, unless the stream grows with N all the same.
    """
    own = own_pass.loop.visits
    points, moved = _points(setting, knob, own_pass, ())
    if len(points) < 2:
        return None
    law, exponent = law_over_loops([p[0] for p in points], moved)
    contracts = own_pass.far is not None and own_pass.far.contracts
    grows = grows_with([p[0] for p in points], [p[1] for p in points])
    if (contracts and not grows) or max(p[1] for p in points) < STILL:
        law = "bounded"
    powers = {kind: _power(points, kind) for kind in KINDS}
    frozen = [kind for kind, power in powers.items() if power is not None and abs(power) < FROZEN]
    followed = None
    if following(own_pass, own, kinds=frozen):
        with_eps, then = _points(setting, knob, own_pass, frozen)
        known = power_fit([p[0] for p in with_eps], then) if len(with_eps) > 1 else None
        followed = known[0] if known else None
    tried, gains = tuple(p[0] for p in points), tuple(p[1] for p in points)
    return OverLoops(tried, gains, law, exponent, powers["branch"], followed)


def with_drift(setting: Setting, knob: Knob, seen: Pass) -> Pass:
    """Return the same pass with whether a drift shrinks its stream: a visit takes less away the more there are."""
    far = seen.far
    if far is None or not far.contracts or not RESET < far.visit < 1:
        return seen
    own = seen.loop.visits
    count = knob.nearest(next(n for n in reversed(counts_around(own)) if n != own))
    with knob.at(count, setting) as there:
        try:
            other = far_gain(there, anew(there, seen, count))
        except Exception:  # some settings break some models
            other = None
    if other is None or other.visits == far.visits or not other.visit < 1:
        return seen
    power = math.log((1 - other.visit) / (1 - far.visit)) / math.log(other.visits / far.visits)
    return replace(seen, far=replace(far, drifts=power < DRIFT))


Point = tuple[int, float, dict[str, float]]


def _power(points: list[Point], kind: str) -> float | None:
    """Return a in eps ~ N^-a of the steps of one kind; None where they are at one N only."""
    scaled = [(n, eps[kind]) for n, _, eps in points if eps.get(kind) and math.isfinite(eps[kind])]
    fit = power_fit([n for n, _ in scaled], [eps for _, eps in scaled]) if len(scaled) > 1 else None
    return -fit[0] if fit else None


def _points(setting: Setting, knob: Knob, own_pass: Pass, follow: Sequence[str]) -> tuple[list[Point], list[float]]:
    """Measure at each N, the scales of the kinds `follow` made to follow it."""
    points: list[Point] = []
    moved: list[float] = []
    factors = (lambda count: following(own_pass, count, kinds=follow)) if follow else None
    for count, seen, growth in passes_at(setting, knob, own_pass, factors, own_pass):
        scales = {k: [b.scale for b in seen.branches if b.kind == k and not b.dead and b.sizes] for k in KINDS}
        moved.append(growth.movement)
        points.append((count, growth.gain, {k: sum(eps) / len(eps) for k, eps in scales.items() if eps}))
    return points, moved


def passes_at(
    setting: Setting, knob: Knob, like: Pass, factors: Callable[[int], Factors] | None, known: Pass | None
) -> Iterator[tuple[int, Pass, Growth]]:
    """Give N, the pass and its growth around the N of a pass, where `known` is the pass if it was already made.

    A loop that ended before what its knob allows is run anew: its scale may follow the knob and not the visits.
    """
    own = like.loop.visits
    known = known if knob.allows in (None, own) else None
    for count, there in at_each(setting, knob, counts_around(own), factors):
        try:
            seen = known if known is not None and count == own else anew(there, like, count)
        except Exception:  # some settings break some models: they count as not varied
            continue
        if seen.growth is not None and seen.loop.visits == count:
            yield count, seen, seen.growth
