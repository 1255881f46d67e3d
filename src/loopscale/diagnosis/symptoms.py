"""The figures that every diagnosis takes, with their limits. A symptom beyond its limit is never passed over.

Limits: the stream grows at most twofold over the visits, unless what it grows by sums to one unscaled visit (the law is
bounded); N^0.25 over N, with eps following N; the change by one optimiser step N^0.35 (1/N gives 0.06, 1/sqrt(N) 0.4, no
scale 0.55); differences grow at the last visit by at most 1 + 2/N beside a skip and 1.05 without one; the gradient reaches
all visits; every value is finite; at most a fifth of a bf16 stream's elements lose an update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loopscale.diagnosis.arnoldi import Spectrum
from loopscale.diagnosis.branches import LOST
from loopscale.diagnosis.causes import Facts
from loopscale.diagnosis.diagnosis import Finding, Symptom, finding
from loopscale.diagnosis.gradients import Gradients
from loopscale.diagnosis.growth import GAIN, OVER
from loopscale.diagnosis.onestep import OneStep
from loopscale.diagnosis.overloops import OverLoops

STEP, EXPANDS, BESIDE_A_SKIP = 0.35, 1.05, 2.0
GROWTH, OVER_N, ONE_STEP = "growth over the visits", "growth over N", "one-step change over N"
EXPANSION, REACH, FINITE, BF16 = (
    "expansion at the last visit",
    "reach of the gradient",
    "finite values",
    "updates in bf16",
)
# What explains which symptom: a finding of one of these codes accounts for it.
SCALE = {
    "unscaled-residual",
    "sqrt-scaled",
    "nested-skip",
    "unscaled-injection",
    "miscounted-loops",
    "double-depth-scale",
    "expanding-map",
    "marginal-decay",
    "nonfinite",
    "untied",
    "restarts",
    "dead-branch",
}
EXPLAINS = {
    GROWTH: SCALE,
    OVER_N: SCALE,
    ONE_STEP: SCALE | {"norm-bounded", "halts-early"},
    EXPANSION: SCALE | {"norm-bounded"},
    REACH: {"truncated-gradient", "nonfinite", "restarts", "dead-branch", "idle-loop"},
    FINITE: {"nonfinite"},
    BF16: {"bf16-absorbed"},
}


@dataclass(frozen=True)
class Measured:
    """What was measured of one loop; each is None where it could not be, and `why` says so by the symptom's name."""

    facts: Facts
    varied: OverLoops | None
    stepped: OneStep | None
    spectrum: Spectrum | None
    grads: Gradients | None
    broken: bool
    why: dict[str, str]

    @property
    def silent(self) -> tuple[str, ...]:
        """Parameters that act and get no gradient."""
        return self.stepped.without_gradient if self.stepped else ()


def symptoms(seen: Measured) -> list[Symptom]:
    """Judge every figure by its limit."""
    return [_growth(seen), _over(seen), _step(seen), _expansion(seen), _reach(seen), _finite(seen), _bf16(seen)]


def unexplained(found: list[Symptom], findings: list[Finding], facts: Facts) -> list[Finding]:
    """Give one finding for symptoms beyond their limits that no other finding accounts for; empty when all are."""
    codes = {f.code for f in findings}
    left = [s for s in found if s.beyond and not codes & EXPLAINS[s.name]]
    if not left:
        return []
    known = [f"{kind} {part:.0%}" for kind, part in facts.shown.shares.items() if part is not None]
    tried = f"; left out, of the growth go along: {', '.join(known)}" if known else ""
    return [finding("growth-unexplained", facts.where, "; ".join(s.text() for s in left) + tried)]


def _missing(name: str, limit: float, seen: Measured, otherwise: str) -> Symptom:
    why = "values are not finite" if seen.broken else seen.why.get(name, otherwise)
    return Symptom(name, None, limit, why=why)


def _growth(seen: Measured) -> Symptom:
    growth = seen.facts.growth
    if growth is None:
        return _missing(GROWTH, GAIN, seen, "no value that torch calls show passes from visit to visit")
    said = f"gain {growth.gain:.3g}, {growth.law} (limit {GAIN:g}, or bounded)"
    return Symptom(GROWTH, growth.gain, GAIN, growth.beyond, told=said)


def _over(seen: Measured) -> Symptom:
    varied = seen.varied
    if varied is None:
        return _missing(OVER_N, OVER, seen, "nothing was found that sets N; name it with loops_arg")
    slope = varied.exponent if varied.followed is None else varied.followed
    if slope is None:  # a stream that overflows at some N, or never moves
        over = not all(math.isfinite(gain) for gain in varied.gains)
        return Symptom(OVER_N, math.inf if over else 0.0, OVER, over)
    still = varied.law == "bounded" or max(varied.gains) < GAIN
    follows = ", with eps made to follow N" if varied.followed is not None else ""
    said = f"N^{slope:.2f}{follows} (limit N^{OVER:g})"
    return Symptom(OVER_N, slope, OVER, slope > OVER and not still, told=said)


def _step(seen: Measured) -> Symptom:
    stepped = seen.stepped
    slope = stepped.slope_first if stepped else None
    if slope is None:
        return _missing(ONE_STEP, STEP, seen, "nothing was found that sets N; name it with loops_arg")
    return Symptom(ONE_STEP, slope, STEP, slope > STEP, told=f"N^{slope:.2f} (limit N^{STEP:g})")


def _expansion(seen: Measured) -> Symptom:
    facts, spectrum = seen.facts, seen.spectrum
    skip = facts.carried
    limit = 1 + BESIDE_A_SKIP / facts.loops if skip else EXPANDS
    if spectrum is None:
        return _missing(EXPANSION, limit, seen, "a visit's derivative could not be taken")
    bounded = facts.bounded_by is not None and skip
    said = f"radius {spectrum.radius:.3g} (limit {limit:.3g})"
    return Symptom(EXPANSION, spectrum.radius, limit, spectrum.radius > limit and not bounded, told=said)


def _reach(seen: Measured) -> Symptom:
    grads, loops = seen.grads, seen.facts.loops
    if grads is None or grads.reached is None:
        return _missing(REACH, loops, seen, "the output has no gradient")
    return Symptom(
        REACH, grads.reached, grads.read, grads.reached < grads.read, told=f"{grads.reached} of {grads.read} visits"
    )


def _finite(seen: Measured) -> Symptom:
    return Symptom(FINITE, float(not seen.broken), 1.0, seen.broken, told="not all" if seen.broken else "all")


def _bf16(seen: Measured) -> Symptom:
    lost = max((b.absorbed for b in seen.facts.branches), default=0.0)
    return Symptom(BF16, lost, LOST, lost > LOST, told=f"{lost:.0%} lost (limit {LOST:.0%})")
