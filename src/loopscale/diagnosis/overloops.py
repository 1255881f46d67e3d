"""Vary N on the model as it is: growth over N, how eps follows N, and the law if it did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopscale.diagnosis.branches import Branch
from loopscale.diagnosis.growth import law_over_loops, power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass, measured_pass
from loopscale.diagnosis.setting import Factors, Setting, at_each

# A stream that grows by less than this at every N has no law of growth worth a name.
STILL = 1.1
# A scale that falls more slowly than N^-0.1 does not follow N.
FROZEN = 0.1


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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "loops": list(self.loops),
            "gains": list(self.gains),
            "exponent": self.exponent,
            "scale_power": self.scale_power,
            "followed": self.followed,
        }


def counts_around(own: int) -> list[int]:
    """Return N/2, N and 2N, at small N up to 8, or fewer where N is large."""
    if own >= 12:
        return sorted({max(own // 4, 2), own // 2, own})
    return sorted({max(own // 2, 2), own, 2 * own, *([4, 8] if own <= 4 else [])})


def following(seen: Pass, count: int, beside: Sequence[Branch] = ()) -> Factors:
    """Return factors by which a scale that is right at the pass's own N is right at `count`.

    Of loops `beside` it as well.
    """
    return {
        site: (b.operand, seen.loop.visits / count)
        for b in (*seen.branches, *beside)
        if b.kind in ("branch", "inject") and b.operand >= 0 and b.scale < 0.9
        for site in b.sites
    }


def over_loops(setting: Setting, knob: Knob, own_pass: Pass, contracts: bool = False) -> OverLoops | None:
    """Measure at other numbers of loops; None when it cannot be varied.

    `own_pass` is the one already measured at the model's own N.
    `contracts`: a norm or a contractive carry is known to set the size of the stream, so that its law is bounded.
    """
    own = own_pass.loop.visits
    points, moved = _points(setting, knob, own_pass, None)
    if len(points) < 2:
        return None
    law, exponent = law_over_loops([p[0] for p in points], moved)
    if contracts or max(p[1] for p in points) < STILL:
        law = "bounded"
    scaled = [(n, eps) for n, _, eps in points if eps and math.isfinite(eps)]
    fit = power_fit([n for n, _ in scaled], [eps for _, eps in scaled]) if len(scaled) > 1 else None
    followed = None
    if fit is not None and abs(fit[0]) < FROZEN and following(own_pass, own):
        with_eps, then = _points(setting, knob, own_pass, own_pass)
        known = power_fit([p[0] for p in with_eps], then) if len(with_eps) > 1 else None
        followed = known[0] if known else None
    tried, gains = tuple(p[0] for p in points), tuple(p[1] for p in points)
    return OverLoops(tried, gains, law, exponent, -fit[0] if fit else None, followed)


def _points(
    setting: Setting, knob: Knob, own_pass: Pass, follow: Pass | None
) -> tuple[list[tuple[int, float, float | None]], list[float]]:
    points: list[tuple[int, float, float | None]] = []
    moved: list[float] = []
    own = own_pass.loop.visits
    factors = (lambda count: following(follow, count)) if follow else None
    for count, there in at_each(setting, knob, counts_around(own), factors):
        try:
            seen = own_pass if count == own else measured_pass(there)
        except Exception:  # some settings break some models: they count as not varied
            continue
        if seen.growth is None or seen.loop.visits != count:
            continue
        living = [b.scale for b in seen.branches if b.kind == "branch" and not b.dead]
        moved.append(seen.growth.moved[-1] / max(seen.growth.norms[0], 1e-30))
        points.append((count, seen.growth.gain, sum(living) / len(living) if living else None))
    return points, moved
