"""From measured facts to findings: one function for each cause. Every threshold stands here, with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

from loopscale.diagnosis.branches import Branch
from loopscale.diagnosis.diagnosis import Finding, finding
from loopscale.diagnosis.growth import CONTRACTIVE, RESET, Far, Growth
from loopscale.diagnosis.stated import Stated

# A branch scale this near a formula is taken to be that formula.
MATCH = 0.04
# Branches whose scales differ by more than this are not under one rule.
MIXED = 2.0
# A further factor above this is no second depth rule: a gate that starts at 1/2 is not.
FURTHER = 0.45
# A scale falls over N by at most 1/N under any rule; by more than N^-1.4 two factors of N act.
TWICE = 1.4
# Updates with a smaller mean cosine over the visits do not add up coherently: then 1/N is no advice.
COHERENT = 0.3


@dataclass(frozen=True)
class Shown:
    """What experiments showed: the kinds of levers whose factors make the stream grow, and each one's share of the growth.

    `enlarged`: the gain with branches as large as the stream, where their size at initialisation hides it. `projected`:
    output projections are small by a factor of depth, and branches follow their size.
    """

    causes: frozenset[str] = frozenset()
    shares: Mapping[str, float | None] = field(default_factory=dict)
    enlarged: float | None = None
    projected: bool = False

    def share(self, kind: str, what: str) -> str:
        """Spell what becomes of the growth when this is left out; empty where it was not measured."""
        part = self.shares.get(kind)
        return "" if part is None else f"; left out, {what} {part:.0%} of the growth along"


@dataclass(frozen=True)
class Facts:
    """What is known of the main loop. `far`: what visits do to a large stream; `scale_power`: a in eps ~ N^-a, if N varies.

    `stated`: what the model says of its scale itself; `shown`: what experiments decided.
    """

    loops: int
    layers: int
    where: str
    prescribed: float
    branches: tuple[Branch, ...]
    growth: Growth | None
    far: Far | None
    scale_power: float | None = None
    init_ratio: float | None = None
    dtype: str = "float32"
    stated: Stated | None = None
    over: float | None = None
    shown: Shown = field(default_factory=Shown)

    @property
    def miscounted(self) -> bool:
        """Whether the model scales for another number of visits than it makes."""
        told = self.stated.loops if self.stated is not None else None
        if told is None or self.stated is None:
            return False
        return told < self.loops if self.stated.kind == "loop" else told != self.loops

    @property
    def strength(self) -> float:
        """The strength that the model states; 1 where it states none."""
        return self.stated.strength if self.stated is not None else 1.0

    @property
    def right(self) -> float:
        """The scale that branches should have: the one that remedies name and that experiments try."""
        return self.prescribed * self.strength

    @property
    def formula(self) -> str:
        """How `right` is computed, for a sentence."""
        base = self.stated.base_layers if self.stated is not None else None
        strength = "" if self.strength == 1 else f"{self.strength:g} "
        return f"{strength}1/(N sqrt(L))" if base is None else f"{strength}1/(N sqrt(L / {base}))"

    @property
    def living(self) -> list[Branch]:
        """Branches that add something."""
        return [b for b in self.branches if b.kind == "branch" and not b.dead]

    @property
    def carried(self) -> bool:
        """Whether a skip carries the stream past all weights of a visit."""
        kinds = {b.kind for b in self.branches if b.kind != "map" or b.learned}
        return "branch" in kinds and "map" not in kinds

    @property
    def scale(self) -> float | None:
        """The median measured eps; of branches that differ by more than a factor, that of the least scaled."""
        found = sorted(b.scale for b in self.living if math.isfinite(b.scale))
        if not found:
            return None
        return found[-1] if found[-1] > MIXED * found[0] else median(found)

    @property
    def least_scaled(self) -> list[Branch]:
        """The branches that set `scale`: all of them, unless only some are scaled."""
        eps = self.scale or 0.0
        return [b for b in self.living if b.scale * MIXED >= eps]

    @property
    def bounded_by(self) -> str | None:
        """Why the size of the stream cannot grow whatever eps is; None when it can."""
        if self.far is None or not self.far.contracts or self.far.drifts:
            return None
        if self.far.visit >= CONTRACTIVE:
            return "a norm or a contractive carry at some of the visits"
        return "a norm on the stream itself" if self.far.visit < RESET else "a contractive carry"

    @property
    def small_by_depth(self) -> bool:
        """Whether output projections are smaller than the other matrices by a factor of depth, beside an eps."""
        eps, ratio = self.scale, self.init_ratio
        if eps is None or ratio is None or eps > 0.9 or self.loops < 2 or ratio > 0.6:
            return False
        depths = (self.loops, self.layers, self.loops * self.layers)
        products = {factor * depth for depth in depths for factor in (1, 2)}
        return any(_near(ratio, 1 / math.sqrt(product), 0.12) for product in products if product > 2)

    @property
    def nested(self) -> bool:
        """Whether the stream is added to a copy of itself and that compounds: more than e over all visits."""
        if self.far is None or not any(b.nested for b in self.branches):
            return False
        return self.far.most > 1.02 and self.far.most**self.loops >= 3.5


def judge(facts: Facts) -> list[Finding]:
    """Give all findings on one loop, in the order in which they are said within one severity."""
    return [said for cause in CAUSES for said in cause(facts)]


def _miscounted(facts: Facts) -> Iterator[Finding]:
    told = facts.stated
    if told is None or not facts.miscounted:
        return
    if told.kind == "loop":
        cause = (
            "the Loop is called more than once in a pass, as by a `for` kept around it: it counts its own visits only"
        )
        remedy = f"take the `for` away and call the Loop once, loop(x, loops={facts.loops})"
    else:
        cause = "attach was given another N than the model makes, or the model's own was changed since"
        remedy = f"handle.set_loops({facts.loops}) wherever the model's own number of loops is set"
    eps = "" if told.eps is None else f" and gives its eps, {told.eps:.4g}"
    yield finding(
        "miscounted-loops",
        told.where if told.kind == "loop" else facts.where,
        f"the weights act {facts.loops} times in one pass, and {told.where} counts N = {told.loops}{eps}",
        "error" if facts.growth is not None and facts.growth.gain > 2 else "warning",
        remedy,
        cause,
    )


def _nested(facts: Facts) -> Iterator[Finding]:
    if "nested" in facts.shown.causes and facts.far is not None:
        factor = facts.far.most
        skips = [b for b in facts.branches if b.nested and b.line]
        yield finding(
            "nested-skip",
            facts.where,
            f"a large stream comes out {factor:.3g} times as large from every visit: "
            f"{factor**facts.loops:.3g} after {facts.loops}" + (f"; added at {skips[0].line}" if skips else ""),
        )


def _bounded(facts: Facts) -> Iterator[Finding]:
    reason = facts.bounded_by
    if reason is not None and facts.far is not None:
        some = facts.far.visit >= CONTRACTIVE
        what, size = ("the loop", facts.far.last) if some else ("a visit", facts.far.visit)
        yield finding(
            "norm-bounded",
            facts.where,
            f"a stream made 1000 times larger leaves {what} {size:.3g} times as large as it came: {reason}",
        )


def _scales(facts: Facts) -> Iterator[Finding]:
    eps, shown = facts.scale, facts.shown
    if eps is None or "branches" not in shown.causes:
        return
    more = shown.share("branches", "they take") if shown.enlarged is None else ""
    if shown.enlarged is not None:
        more = (
            f"; made as large as the stream, as training may make them, they take it to a gain of {shown.enlarged:.3g}"
        )
    if scale_kind(facts) != "sqrt":
        law = f"{facts.growth.law}, gain {facts.growth.gain:.3g}" if facts.growth else "not measured"
        grown = facts.growth is not None and facts.growth.gain > 2
        yield finding(
            "unscaled-residual",
            _places(facts.least_scaled),
            f"eps = {eps:.3g} at N = {facts.loops}{_only(facts)}, growth {law}, "
            f"updates of the visits have cosine {_cosine(facts)}{_lines(facts.least_scaled)}{more}",
            "error" if grown else "warning",
            f"{'multiply' if _near(eps, 1.0) else 'bring'} every residual branch "
            f"{'by' if _near(eps, 1.0) else 'to'} {facts.right:.4g} = {facts.formula}, and tune its strength at few loops",
        )
    else:
        ratio = facts.init_ratio or 1.0
        by_init = f", and output projections initialised at {ratio:.3g} of the others" if eps > 0.9 > ratio else ""
        mended = f", and initialise output projections like the others (times {1 / ratio:.3g})" if by_init else ""
        yield finding(
            "sqrt-scaled",
            _places(facts.least_scaled),
            f"eps = {eps:.4g}{by_init}{_only(facts)} at N = {facts.loops}, L = {facts.layers}"
            f"{_over_loops(facts.scale_power)}{more}",
            remedy=f"use 1/N over loops: {facts.right:.4g} = {facts.formula}{mended}",
        )


def scale_kind(facts: Facts) -> str:
    """Return which law the branch scale follows: none, sqrt, or looped (anything at most about 1/N, whatever its strength).

    It words a finding; whether there is one, experiments decide.
    """
    eps, N, L = facts.scale or 0.0, facts.loops, facts.layers
    if facts.scale_power is not None and 0.35 < facts.scale_power < 0.65:
        return "sqrt"
    if facts.scale_power is not None and facts.scale_power > 0.85:
        return "looped"
    written = eps * (facts.init_ratio or 1.0) if facts.init_ratio and eps > 0.9 else eps
    if any(_near(eps, value) for value in (facts.prescribed, 1 / N, 1 / (N * L))) or eps <= 1.05 / N:
        return "looped"
    roots = [1 / math.sqrt(N), 1 / math.sqrt(N * L), 1 / math.sqrt(2 * N * L)]
    if any(_near(eps, value) for value in roots) or (written < eps and any(_near(written, v, 0.15) for v in roots[1:])):
        return "sqrt"
    growing = facts.growth is not None and (facts.growth.law != "bounded" or facts.growth.gain > 2)
    if eps >= 0.9:
        return "none"
    # Other values: strength times 1/N up to a strength of 3; beyond it, what grows is named by the nearer law.
    if eps * N * math.sqrt(L) <= 3 or not growing:
        return "looped"
    frozen = facts.scale_power is not None and abs(facts.scale_power) < 0.1
    return "none" if frozen or eps > N**-0.25 else "sqrt"


def _injection(facts: Facts) -> Iterator[Finding]:
    if "injected" not in facts.shown.causes or facts.growth is None:
        return
    # What is injected is judged together: a position and a time signal are each a part of one thing.
    added = [b for b in facts.branches if b.enters and b.sizes and b.scale * facts.loops > 1.05]
    sums = [sum(b.sizes) / len(b.sizes) * facts.loops for b in added]
    total, end = sum(sums), facts.growth.norms[-1]
    heavy = [(b, part) for b, part in zip(added, sums, strict=True) if part >= 0.1 * total]
    names = list(dict.fromkeys(b.where for b, _ in heavy))
    shares = ", ".join(f"{b.where} {part:.3g}" for b, part in heavy)
    cosines = [b.cosine for b, _ in heavy if b.cosine is not None]
    same = "the same input is added" if not cosines or min(cosines) > 0.9 else "an input is added"
    yield finding(
        "unscaled-injection",
        ", ".join(names),
        f"{same} at each of {facts.loops} visits, {total:.3g} in all ({shares}) against a stream of "
        f"{end:.3g}{_lines([b for b, _ in heavy])}{facts.shown.share('injected', 'it takes')}",
        remedy=f"bring it to 1/N = {1 / facts.loops:.4g} in all, add it once before the loop or to the branch input only, "
        "or use a contractive carry",
    )


def _gain(facts: Facts) -> Iterator[Finding]:
    if "gains" not in facts.shown.causes or facts.growth is None:
        return
    large = [b for b in facts.branches if max(b.carry, b.scale if b.kind == "scale" else 0.0) > 1.02]
    factor = math.prod(b.scale if b.kind == "scale" else b.carry for b in large)
    mixed = any(b.mixes and b.kind != "scale" for b in large)
    what = "streams are mixed into one another, and that" if mixed else "a factor on the stream itself"
    yield finding(
        "nested-skip" if mixed else "expanding-map",
        _places(large),
        f"{what} multiplies it by {factor:.3g} at every visit: {factor**facts.loops:.3g} after "
        f"{facts.loops}, gain {facts.growth.gain:.3g}{_lines(large)}",
        "error",
        "let what a stream takes of all streams sum to 1"
        if mixed
        else f"let the factors on the stream multiply to at most 1 (divide by {factor:.4g})",
        "what carries the stream past the block is larger than 1, so that visits multiply it whatever they add",
    )


def _decay(facts: Facts) -> Iterator[Finding]:
    if facts.far is not None and facts.far.visit < RESET:
        return
    for branch in facts.branches:
        if branch.decay is not None and branch.decay > 0:
            of = f" made of {', '.join(branch.decay_of[:2])}" if branch.decay_of else ""
            said = f"{branch.decay:.0%} of the channels of the decay{of} are 1 to six digits{_lines([branch])}"
            yield finding("marginal-decay", branch.where, said)
            return


def _dead(facts: Facts) -> Iterator[Finding]:
    dead = [b for b in facts.branches if b.kind == "branch" and b.dead]
    if dead:
        yield finding("dead-branch", _places(dead), f"{len(dead)} branches add exactly nothing")


def _double(facts: Facts) -> Iterator[Finding]:
    ratio = facts.init_ratio
    if facts.shown.projected and ratio is not None:
        yield finding(
            "double-depth-scale",
            _places(facts.living),
            f"eps = {facts.scale:.3g}, and output projections are {ratio:.3g} times as large as the other "
            "matrices: no norm behind them makes up for that",
            remedy=f"initialise output projections like the others (times {1 / ratio:.3g}); eps alone carries the depth",
            cause="an initialisation by 1/sqrt(2 depth), as GPT-2 does, stands on top of the residual scale",
        )


def _falls_twice(facts: Facts) -> Iterator[Finding]:
    """Return a scale that was seen to fall faster over N than the loops ask for."""
    power = facts.scale_power
    if facts.scale is None or "nested" in facts.shown.causes:
        return
    # A scale that falls faster is one of an integrator of second order, unless the loop does less at more loops.
    falls = power is not None and power > TWICE and (facts.over is None or facts.over < -0.4)
    if not (falls or _two_factors(facts)):
        return
    yield finding(
        "double-depth-scale",
        _places(facts.living),
        f"eps = {facts.scale:.3g} at N = {facts.loops}{_over_loops(power)}{_lines(facts.living)}",
        remedy=f"keep one factor of N: {facts.right:.4g} = {facts.formula} in all",
        cause="a second residual scale stands on top of the first, in the block or around it",
    )


def _two_factors(facts: Facts) -> bool:
    """Say whether two factors of a branch are each one of N, written or learned.

    A learned one does not follow N; its value tells, but where 1/N is a customary start of LayerScale.
    """
    rules = (1 / facts.loops, facts.prescribed)
    customary = facts.loops in (10, 100, 1000)
    pairs = [[f for f in b.factors if any(_near(f, rule) for rule in rules)] for b in facts.living]
    return facts.loops > 2 and bool(pairs) and not customary and all(len(pair) > 1 for pair in pairs)


def _squared(facts: Facts) -> Iterator[Finding]:
    """Return a factor on top of the one that the model states: eps twice, or 1/N written in the forward besides."""
    told, eps, N, L = facts.stated, facts.scale, facts.loops, facts.layers
    if told is None or not told.eps or not eps or facts.miscounted or N < 2:
        return
    if any(branch.learned for branch in facts.living):  # LayerScale or a gate: it is of any size, and moves
        return
    further = eps / told.eps
    rules = (told.eps, facts.prescribed, 1 / N, 1 / (N * math.sqrt(L)), 1 / math.sqrt(N * L), 1 / math.sqrt(N))
    if further < FURTHER and any(_near(further, rule) for rule in rules):
        yield finding(
            "double-depth-scale",
            _places(facts.living),
            f"eps = {eps:.4g} as measured and {told.eps:.4g} by {told.where}: a further factor {further:.4g} acts",
            remedy="keep one of the two: the Loop, or what was attached, carries the depth alone",
            cause="a second residual scale stands on top of the first: attach over a Loop, or a factor in the forward",
        )


def _over_loops(power: float | None) -> str:
    if power is None:
        return ""
    if abs(power) < 0.1:
        return "; it is fixed and does not follow N"
    return f"; it falls like N^-{power:.2f}" if power > 0 else f"; it rises like N^{-power:.2f}"


def _absorbed(facts: Facts) -> Iterator[Finding]:
    lost = [b for b in facts.branches if b.absorbed > 0.2]
    if lost:
        wide = facts.dtype == "float32"
        stream = "stream, summed in float32 and stored with fewer digits," if wide else f"{facts.dtype} stream"
        most = max(b.absorbed for b in lost)
        said = f"{most:.0%} of the elements of the {stream} are unchanged by an update"
        yield finding("bf16-absorbed", _places(lost), said)


def _near(value: float, formula: float, tolerance: float = MATCH) -> bool:
    return abs(value / formula - 1) <= tolerance


def _only(facts: Facts) -> str:
    most, rest = len(facts.least_scaled), len(facts.living)
    return f" in {most} of {rest} branches" if most < rest else ""


def _cosine(facts: Facts) -> str:
    known = [b.cosine for b in facts.living if b.cosine is not None]
    return f"{sum(known) / len(known):.2f}" if known else "not measured"


def _places(branches: list[Branch]) -> str:
    names = list(dict.fromkeys(b.where for b in branches))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _lines(branches: list[Branch]) -> str:
    """Return where the additions stand in the code; empty where no Python code makes them."""
    lines = list(dict.fromkeys(b.line for b in branches if b.line))
    return "" if not lines else "; added at " + ", ".join(lines[:3]) + (" ..." if len(lines) > 3 else "")


# In the order in which they are said within one severity.
CAUSES = (
    _miscounted,
    _nested,
    _bounded,
    _scales,
    _injection,
    _gain,
    _decay,
    _dead,
    _double,
    _squared,
    _falls_twice,
    _absorbed,
)
