"""Vary N on the model as it is: growth over N and how eps follows N."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopscale.diagnosis.growth import law_over_loops, power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass, measured_pass

# A stream that grows by less than this at every N has no law of growth worth a name.
STILL = 1.1


@dataclass(frozen=True)
class OverLoops:
    """Gain and eps at each N, the law of the stream's movement over N. `scale_power`: a in eps ~ N^-a."""

    loops: tuple[int, ...]
    gains: tuple[float, ...]
    law: str | None
    exponent: float | None
    scale_power: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "loops": list(self.loops),
            "gains": list(self.gains),
            "exponent": self.exponent,
            "scale_power": self.scale_power,
        }


def over_loops(model: nn.Module, batch: Any, knob: Knob, own_pass: Pass, contracts: bool = False) -> OverLoops | None:
    """Measure at N/2, N and 2N (at small N up to 8), or fewer where N is large; None when it cannot be varied.

    `own_pass` is the one already measured at the model's own N.
    `contracts`: a norm or a contractive carry is known to set the size of the stream, so that its law is bounded.
    """
    own = own_pass.loop.visits
    counts = sorted({max(own // 2, 2), own, 2 * own, *([4, 8] if own <= 4 else [])})
    if own >= 12:
        counts = sorted({max(own // 4, 2), own // 2, own})
    counts = sorted({knob.nearest(count) for count in counts})
    points: list[tuple[int, float, float | None]] = []
    moved: list[float] = []
    for count in counts:
        try:
            with knob.at(count) as extra:
                seen = own_pass if count == own else measured_pass(model, batch, extra)
        except Exception:  # some settings break some models: they count as not varied
            continue
        if seen.growth is None or seen.loop.visits != count:
            continue
        living = [b.scale for b in seen.branches if b.kind == "branch" and not b.dead]
        moved.append(seen.growth.moved[-1] / max(seen.growth.norms[0], 1e-30))
        points.append((count, seen.growth.gain, sum(living) / len(living) if living else None))
    if len(points) < 2:
        return None
    law, exponent = law_over_loops([p[0] for p in points], moved)
    if contracts or max(p[1] for p in points) < STILL:
        law = "bounded"
    scaled = [(n, eps) for n, _, eps in points if eps and math.isfinite(eps)]
    fit = power_fit([n for n, _ in scaled], [eps for _, eps in scaled]) if len(scaled) > 1 else None
    tried, gains = tuple(p[0] for p in points), tuple(p[1] for p in points)
    return OverLoops(tried, gains, law, exponent, -fit[0] if fit else None)
