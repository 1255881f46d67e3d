"""Decide by experiment what makes the stream grow: run the user's forward with other factors and look again.

A lever is a kind of thing on the stream that can be run with another factor: the branches, what is injected, a skip around
a whole block, a factor on the stream itself. All levers are set right together; then each alone is put back. What brings
the growth back is a cause, whatever its numbers look like. Branches that are small at initialisation, and hide what
training makes of them, are first made as large as the stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from loopscale.diagnosis.branches import ATTENTION, Branch, writers
from loopscale.diagnosis.causes import COHERENT, Facts, Shown, scale_kind
from loopscale.diagnosis.growth import GAIN, OVER, Growth, power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass, again, far_gain
from loopscale.diagnosis.overloops import following, passes_at
from loopscale.diagnosis.setting import Factors, Setting
from loopscale.diagnosis.stream import is_node, operands
from loopscale.probe.tape import Node, Site, Tape

# Branches set right that grow by as much, within this factor, are no cause.
SAME = 1.5
# Output projections made this much larger make a branch ten times larger and more, unless a norm stands behind them.
LARGER, FOLLOWS = 1e6, 10.0
# What carries the stream past the block may multiply it by this much.
KEPT = 1.02


@dataclass(frozen=True)
class Lever:
    """`parts`: the steps, which operand of each addition takes a factor, and the factor that sets it right."""

    kind: str
    parts: tuple[tuple[Branch, int, float], ...]

    @property
    def factors(self) -> dict[Site, tuple[int, float]]:
        """The factors by the places of the additions."""
        return {site: (operand, factor) for b, operand, factor in self.parts for site in b.sites}


def tested(setting: Setting, seen: Pass, facts: Facts, knob: Knob | None = None) -> tuple[Facts, list[Lever]]:
    """Give the facts with what experiments show of the growth, and the levers that mend it."""
    shown, levers = _experiments(setting, seen, facts, knob)
    if facts.small_by_depth and _act(setting, seen, facts, _projections(seen, facts, 1 / LARGER)):
        shown = replace(shown, projected=True)
        levers = levers or [_projections(seen, facts, facts.init_ratio or 1.0)]
    return replace(facts, shown=shown), [lever for lever in levers if lever.parts]


def _projections(seen: Pass, facts: Facts, ratio: float) -> Lever:
    """Divide the matrices that write to the stream by their `ratio` to what is right: what they read is multiplied."""
    tape, parts = seen.tape, []
    for key in dict.fromkeys(key for b in facts.living for key in writers(tape, b)):
        sites: dict[int, list[Site]] = {}
        for node in tape.nodes:
            if node.site is not None and node.data and key in node.params and node.op != ATTENTION:
                sites.setdefault(_reads_data(tape, node), []).append(node.site)
        for place, found in sites.items():
            made = Branch("weights", -1, where=tape.names[key][0], scale=ratio, sites=tuple(dict.fromkeys(found)))
            parts.append((made, place, 1 / made.scale))
    return Lever("projections", tuple(parts))


def _reads_data(tape: Tape, node: Node) -> int:
    """Return the place of what a call multiplies its weight with; the first where it is not told."""
    return next((n for n, word in enumerate(operands(node)) if is_node(word) and tape.nodes[word[1]].data), 0)


def _act(setting: Setting, seen: Pass, facts: Facts, lever: Lever) -> bool:
    """Say whether the branches follow the size of what this lever changes: a norm behind it takes that away."""
    now = again(setting.changed(lever.factors), seen)
    pairs = zip(facts.branches, now.branches if now else (), strict=False)
    return any(not b.sizes[0] < FOLLOWS * a.sizes[0] for a, b in pairs if a.sizes and b.sizes)


def _experiments(setting: Setting, seen: Pass, facts: Facts, knob: Knob | None) -> tuple[Shown, list[Lever]]:
    if facts.growth is None or facts.loops < 2 or facts.bounded_by:
        return Shown(), []
    skips = _skips(setting, seen, facts)
    if skips is not None:
        return Shown(frozenset({"nested"})), [skips]
    levers = [lever for lever in (_branches(facts), _injected(facts), _gains(facts)) if lever.parts]
    causes = _put_back(setting, seen, facts, levers) if facts.growth.beyond else set()
    enlarged = None
    if "branches" not in causes and facts.carried and not _follows(facts):
        enlarged = _enlarged(setting, seen, facts, [lever for lever in levers if lever.kind != "branches"])
        if enlarged is not None and scale_kind(facts) != "looped":
            causes.add("branches")
    if not causes and (facts.over or 0.0) > OVER:
        power = 1 - (facts.scale_power or 0.0)
        slopes = {lever.kind: slope_over(setting, seen, lever.factors, knob, power) for lever in levers}
        causes = {kind for kind, slope in slopes.items() if slope is not None and slope <= OVER}
    named = [lever for lever in levers if lever.kind in causes]
    told = levers if facts.growth.beyond and not named else named
    shares = {lever.kind: share(setting, seen, [b for b, _, _ in lever.parts]) for lever in told}
    return Shown(frozenset(causes), shares, None if "branches" not in causes else enlarged), named


def grown(setting: Setting, seen: Pass, factors: Factors) -> Growth | None:
    """Run with these factors and give the growth of the stream; None where the model does not run so."""
    now = again(setting.changed(factors), seen)
    return now.growth if now else None


def share(setting: Setting, seen: Pass, branches: Iterable[Branch]) -> float | None:
    """Return what part of the stream's growth goes away when these additions are left out."""
    sites = {site: (b.operand, 0.0) for b in branches if b.operand >= 0 and b.kind != "scale" for site in b.sites}
    taken = _taken(seen.growth, grown(setting, seen, sites) if sites else None)
    return taken if taken is None else max(0.0, min(1.0, taken))


def _taken(before: Growth | None, now: Growth | None) -> float | None:
    """Return what part of a growth is gone; None where there was none, or it is not known."""
    if before is None or now is None or not before.norms[-1] > before.norms[0]:
        return None
    return 1 - (now.norms[-1] - now.norms[0]) / (before.norms[-1] - before.norms[0])


def slope_over(
    setting: Setting, seen: Pass, factors: Factors, knob: Knob | None, power: float, here: Pass | None = None
) -> float | None:
    """Give the exponent of the stream's movement over N with these factors at each N, where N can be set.

    `power`: that of 1/N by which the model's own scale still has to fall; `here`: the pass at N, where it was made.
    """
    if knob is None:
        return None
    own = seen.loop.visits
    # What is injected has a factor of its own, whatever law the branches' scale follows.
    added = {site for b in seen.branches if b.enters for site in b.sites}

    def at(count: int) -> Factors:
        others = {site: (place, factor**power) for site, (place, factor) in following(seen, count).items()}
        changed = {
            site: (operand, factor * (own / count) ** (1.0 if site in added else power) if 0 < factor < 1 else factor)
            for site, (operand, factor) in factors.items()
        }
        return {**others, **changed}

    moved = {count: growth.movement for count, _, growth in passes_at(setting, knob, seen, at, here)}
    fit = power_fit(list(moved), list(moved.values())) if len(moved) > 1 else None
    return fit[0] if fit else None


def _put_back(setting: Setting, seen: Pass, facts: Facts, levers: list[Lever]) -> set[str]:
    """Return the kinds that bring the growth back when all others are right; of several that do so jointly, all."""
    found = set()
    for lever in levers:
        others = _joined(other for other in levers if other is not lever)
        back = grown(setting, seen, others) if others else seen.growth
        if back is not None and back.beyond:
            found.add(lever.kind)
    mended = grown(setting, seen, _joined(levers))
    if mended is None or not levers:
        return set()
    if mended.beyond or (
        mended.gain > GAIN and not facts.carried
    ):  # none of them removes the growth: those that take most of it along are causes of that part
        return {lever.kind for lever in levers if facts.carried and _takes(setting, seen, lever)}
    return found or {lever.kind for lever in levers}


def _takes(setting: Setting, seen: Pass, lever: Lever) -> bool:
    """Say whether a lever alone, set right, takes at least half of the growth along."""
    now = grown(setting, seen, lever.factors)
    if now is None or seen.growth is None:
        return False
    if not math.isfinite(seen.growth.gain):
        return math.isfinite(now.gain)
    return (_taken(seen.growth, now) or 0.0) > 0.5


def _enlarged(setting: Setting, seen: Pass, facts: Facts, others: list[Lever]) -> float | None:
    """Give the gain with branches as large as the stream, if beyond its limit and a right scale takes it back."""
    if seen.growth is None or not facts.living:
        return None
    right = _branches(facts)
    if not right.parts:
        return None
    size, large = seen.growth.norms[0], dict[Site, tuple[int, float]]()
    for b in facts.living:
        whole = b.sizes[0] / b.scale if b.sizes and b.scale > 0 else 0.0
        if b.operand >= 0 and 0 < whole < size:
            large.update({site: (b.operand, size / whole) for site in b.sites})
    there = setting.changed(_joined(others)).changed(large)
    now, mended = again(there, seen), grown(there, seen, right.factors)
    if now is None:
        return None
    known = [b.cosine for b in now.branches if b.kind == "branch" and b.cosine is not None]
    if now.growth is None or mended is None or (known and sum(known) / len(known) < COHERENT):
        return None
    worse = now.growth.gain - 1 > SAME * (mended.gain - 1)
    return now.growth.gain if now.growth.gain > GAIN and worse else None


def _follows(facts: Facts) -> bool:
    return facts.miscounted or (facts.scale_power is not None and facts.scale_power > 0.85)


def _branches(facts: Facts, undone: float = 1.0) -> Lever:
    """Set every branch to the prescribed scale, at the stated strength; `undone`: what an initialisation took away."""
    if facts.miscounted:
        return Lever("branches", ())
    if facts.init_ratio and scale_kind(facts) == "sqrt":
        undone = 1 / facts.init_ratio
    over = [b for b in facts.living if b.operand >= 0 and b.scale > 0 and (b.scale > 1.05 * facts.right or undone > 1)]
    return Lever("branches", tuple((b, b.operand, facts.right / b.scale * undone) for b in over))


def _injected(facts: Facts) -> Lever:
    """Set everything injected at 1/N."""
    # A map that expands by itself multiplies whatever enters it.
    kept = facts.far is not None and facts.far.most <= KEPT
    added = [b for b in facts.branches if b.enters and b.operand >= 0 and b.sizes and (kept or b.kind == "inject")]
    large = [b for b in added if b.scale * facts.loops > 1.05]
    return Lever("injected", tuple((b, b.operand, 1 / (facts.loops * b.scale)) for b in large))


def _gains(facts: Facts) -> Lever:
    """Set factors above 1 on the stream itself, alone or beside an addition, to 1."""
    alone = [(b, b.operand, 1 / b.scale) for b in facts.branches if b.kind == "scale" and b.scale > KEPT]
    beside = [(b, b.other, 1 / b.carry) for b in facts.branches if b.kind != "scale" and b.carry > KEPT]
    return Lever("gains", tuple(part for part in [*alone, *beside] if part[1] >= 0 and part[0].sites))


def _skips(setting: Setting, seen: Pass, facts: Facts) -> Lever | None:
    """Return the skip around a block that has one, left out.

    Of streams read as a sum, where that does not do, the block less.
    """
    if not facts.nested:
        return None
    nested = [b for b in facts.branches if b.nested and b.sites]
    outer = Lever("nested", tuple((b, b.other, 0.0) for b in nested if b.other >= 0))
    past = [b for b in nested if b.kind == "inject"]
    far = far_gain(setting.changed(outer.factors), seen) if outer.parts and not past else None
    if far is not None and far.most <= KEPT:
        return outer
    inner = Lever("nested", tuple((b, b.operand, 0.0) for b in nested if b.operand >= 0))
    far = far_gain(setting.changed(inner.factors), seen) if inner.parts else None
    kept, full = far.most if far else 9.0, facts.far.most if facts.far else 1.0
    if past and kept <= KEPT:
        return inner
    if kept < 1 < full:
        return replace(inner, parts=tuple((b, place, (1 - kept) / (full - kept)) for b, place, _ in inner.parts))
    # Where a matrix takes all of the stream in, it is no skip that multiplies it, unless leaving one out shows that.
    return Lever("nested", ()) if facts.carried else None


def _joined(levers: Iterable[Lever]) -> dict[Site, tuple[int, float]]:
    return {site: part for lever in levers for site, part in lever.factors.items()}
