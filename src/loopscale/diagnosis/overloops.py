"""Vary N on the model as it is: growth over N, how eps follows N, and the range of loops that keeps the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from loopscale.diagnosis.batch import first_float
from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.growth import law_over_loops, power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.loops import FoundLoop
from loopscale.diagnosis.passes import record


@dataclass(frozen=True)
class OverLoops:
    """Gain and eps at each N. `scale_power`: a in eps ~ N^-a. `change`: |y_N - y| / |y| against the model's own N."""

    loops: tuple[int, ...]
    gains: tuple[float, ...]
    law: str | None
    exponent: float | None
    scale_power: float | None
    change: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "loops": list(self.loops),
            "gains": list(self.gains),
            "exponent": self.exponent,
            "scale_power": self.scale_power,
            "output_change": self.change,
        }


def over_loops(
    model: nn.Module, batch: Any, knob: Knob, loop: FoundLoop, span: tuple[int, int] | None = None
) -> OverLoops | None:
    """Measure at N/2, N and 2N (at small N up to 8), and at powers of two within `span`; None when it cannot be varied."""
    from loopscale.diagnosis.run import measured_pass

    own = loop.visits
    counts = sorted({max(own // 2, 2), own, 2 * own, *([4, 8] if own <= 4 else [])})
    if own >= 12:
        counts = sorted({max(own // 4, 2), own // 2, own})
    points: list[tuple[int, float, float | None]] = []
    moved: list[float] = []
    for count in counts:
        try:
            with knob.at(count) as extra:
                seen = measured_pass(model, batch, extra)
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
    scaled = [(n, eps) for n, _, eps in points if eps]
    fit = power_fit([n for n, _ in scaled], [eps for _, eps in scaled]) if len(scaled) > 1 else None
    change = _change(model, batch, knob, own, span) if span else {}
    tried, gains = tuple(p[0] for p in points), tuple(p[1] for p in points)
    return OverLoops(tried, gains, law, exponent, -fit[0] if fit else None, change)


def _change(model: nn.Module, batch: Any, knob: Knob, own: int, span: tuple[int, int]) -> dict[int, float]:
    low, high = span
    counts = sorted({n for n in (low, high, *(2**k for k in range(12))) if low <= n <= high})

    def output(count: int) -> Any:
        with knob.at(count) as extra:
            return first_float(record(model, batch, extra)[1])

    before = output(own)
    if before is None:
        return {}
    return {n: rms(output(n).float() - before.float()) / max(rms(before), 1e-30) for n in counts}
