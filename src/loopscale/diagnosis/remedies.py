"""Try remedies before they are printed: the user's forward runs again with other factors on its additions.

All that is found is mended together and measured again, until nothing more is found; so a remedy that takes two steps (a
nested skip, then eps) is one. The numbers before and after stand beside the remedy.
"""

from __future__ import annotations

import copy
import linecache
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from loopscale.diagnosis.branches import Branch
from loopscale.diagnosis.causes import Facts, judge
from loopscale.diagnosis.diagnosis import Finding
from loopscale.diagnosis.growth import power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass, far_gain, measured_pass, with_far_gain
from loopscale.diagnosis.overloops import counts_around
from loopscale.diagnosis.setting import Factors, Setting, at_each

MENDED = frozenset({"unscaled-residual", "sqrt-scaled", "nested-skip", "unscaled-injection", "double-depth-scale"})
# More rounds than kinds of trouble that a factor mends would repeat themselves.
ROUNDS = 4
FactsOf = Callable[[Pass], Facts]


@dataclass(frozen=True)
class Trial:
    """The factors that mend the loop, the numbers after them, and the codes that are left."""

    factors: Mapping[Any, tuple[int, float]]
    gain: float
    far: float | None
    left: frozenset[str]
    kinds: tuple[tuple[Branch, float], ...]
    slope: float | None = None

    def said(self, before: Facts, slope: float | None) -> str:
        """Spell what the remedies did, all together."""
        gain = before.growth.gain if before.growth else float("nan")
        over = "" if slope is None or self.slope is None else f", slope over N {slope:+.2f} -> {self.slope:+.2f}"
        then = "then no finding" if not self.left else f"then {', '.join(sorted(self.left))}"
        return f"with all remedies: gain {gain:.3g} -> {self.gain:.3g}{over}, {then}"


def try_remedies(setting: Setting, seen: Pass, facts: Facts, facts_of: FactsOf, knob: Knob | None) -> Trial | None:
    """Mend and measure until nothing is found that a factor mends; None where no factor can be put on what is found."""
    factors: Factors = {}
    kinds: list[tuple[Branch, float]] = []
    now, known = seen, facts
    for _ in range(ROUNDS):
        codes = {f.code for f in judge(known)} & MENDED
        step = _step(setting.changed(factors), now, known, codes)
        if not step:
            break
        new = {site: (operand, factor) for b, operand, factor in step for site in b.sites}
        kinds += [(b, factor) for b, _, factor in step]
        factors = setting.changed(factors).changed(new).factors
        try:
            changed = replace(setting, factors=factors)
            now = measured_pass(changed)
            now = with_far_gain(now, far_gain(changed, now))
        except (LookupError, RuntimeError, ValueError):
            return None
        if now.growth is None:
            return None
        known = replace(facts_of(now), init_ratio=None, scale_power=None)
    if not factors or now.growth is None:
        return None
    left = frozenset(f.code for f in judge(known) if f.severity != "info")
    made = Trial(factors, now.growth.gain, now.far, left, tuple(kinds))
    return replace(made, slope=_slope_over(setting, made, seen, knob, 1 - (facts.scale_power or 0.0)))


def share(setting: Setting, seen: Pass, branches: list[Branch]) -> float | None:
    """What part of the stream's growth goes away when these additions are left out: the experiment behind a cause."""
    sites = {site: (b.operand, 0.0) for b in branches if b.operand >= 0 for site in b.sites}
    if not sites or seen.growth is None:
        return None
    try:
        without = measured_pass(setting.changed(sites), seen.loop, seen.tape)
    except (LookupError, RuntimeError, ValueError):
        return None
    grown = seen.growth.norms[-1] - seen.growth.norms[0]
    if without.growth is None or grown <= 0:
        return None
    left = without.growth.norms[-1] - without.growth.norms[0]
    return max(0.0, min(1.0, 1 - left / grown))


def _step(setting: Setting, seen: Pass, facts: Facts, codes: set[str]) -> list[tuple[Branch, int, float]]:
    """The factors of one round: the skip of a nested loop first, since eps is not told beside it."""
    if "nested-skip" in codes:
        return _unnested(setting, seen, facts)
    step: list[tuple[Branch, int, float]] = []
    if codes & {"unscaled-residual", "sqrt-scaled", "double-depth-scale"}:
        again = 1 / facts.init_ratio if facts.init_ratio and codes & {"sqrt-scaled", "double-depth-scale"} else 1.0
        for b in facts.living:
            if b.operand >= 0 and b.scale > 0 and (b.scale > 1.05 * facts.prescribed or again > 1):
                step.append((b, b.operand, facts.prescribed / b.scale * again))
    if "unscaled-injection" in codes:
        inject = [b for b in facts.branches if b.kind == "inject" and b.operand >= 0 and b.scale * facts.loops > 1.8]
        step += [(b, b.operand, 1 / (facts.loops * b.scale)) for b in inject]
    return step


def _unnested(setting: Setting, seen: Pass, facts: Facts) -> list[tuple[Branch, int, float]]:
    """Leave the outer skip out; where the block's own carry still expands (streams read as a sum), weigh the block down."""
    nested = [b for b in facts.branches if b.nested and b.sites]
    outer = [(b, b.other, 0.0) for b in nested if b.other >= 0]
    if outer and (_far(setting, seen, outer) or 9.0) <= 1.02:
        return outer
    inner = [(b, b.operand, 0.0) for b in nested if b.operand >= 0]
    kept, full = _far(setting, seen, inner), facts.far_gain
    if inner and kept is not None and full is not None and kept < 1 < full:
        return [(b, operand, (1 - kept) / (full - kept)) for b, operand, _ in inner]
    return []


def _far(setting: Setting, seen: Pass, step: list[tuple[Branch, int, float]]) -> float | None:
    sites = {site: (operand, factor) for b, operand, factor in step for site in b.sites}
    return far_gain(setting.changed(sites), seen)


def _slope_over(setting: Setting, trial: Trial, seen: Pass, knob: Knob | None, power: float) -> float | None:
    """The exponent of the stream's movement over N with the remedies at each N, where N can be set.

    `power`: that of 1/N by which the model's own scale still has to fall.
    """
    if knob is None:
        return None
    own = seen.loop.visits
    moved: dict[int, float] = {}

    def factors(count: int) -> Factors:
        return {
            site: (operand, factor * (own / count) ** power if 0 < factor < 1 else factor)
            for site, (operand, factor) in trial.factors.items()
        }

    for count, there in at_each(setting, knob, counts_around(own), factors):
        try:
            at = measured_pass(there)
        except Exception:  # some settings break some models
            continue
        if at.growth is not None and at.loop.visits == count:
            moved[count] = at.growth.moved[-1] / max(at.growth.norms[0], 1e-30)
    fit = power_fit(list(moved), list(moved.values())) if len(moved) > 1 else None
    return fit[0] if fit else None


def edits(trial: Trial, model: nn.Module) -> tuple[str, ...]:
    """The lines that the remedies change, in the user's own files: what stands there and what to do with it."""
    told: dict[str, str] = {}
    for branch, factor in trial.kinds:
        site = next((s for s in branch.sites if s.file), None)
        if site is None:
            continue
        source = linecache.getline(site.file, site.line).strip()
        what = (
            f"multiply what is added by {factor:.4g}" if factor else "leave out the skip: keep the block's result alone"
        )
        if branch.nested and 0 < factor < 1:
            what = (
                f"multiply the block's result by {factor:.4g}, or read the streams as a mean and add the update alone"
            )
        told.setdefault(str(site), f"{source[:90]}   # {what}")
    return tuple(f"{place}: {edit}" for place, edit in list(told.items())[:6])


def attachable(
    model: nn.Module, batch: Any, facts: Facts, trial: Trial, beside: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The keywords of the `attach` that does what the trial did to the branches; tried on a copy, None where it refuses.

    `beside`: branches of layers that are looped one after the other, with the same N.
    """
    from loopscale.adapt import attach

    scaled = [(b, factor) for b, factor in trial.kinds if b.kind == "branch" and 0 < factor < 1 and not b.nested]
    if not scaled or len(scaled) != len(trial.kinds):
        return None
    names = list(dict.fromkeys([*(b.where for b, _ in scaled), *beside]))
    plain = {"loops": facts.loops, "layers": facts.layers}
    for given in ({**plain, "branches": names}, plain):
        try:
            copied = copy.deepcopy(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attach(copied, batch=batch, **given)
            seen = measured_pass(Setting(copied, batch))
        except Exception:  # a model may refuse in any way
            continue
        living = [b.scale for b in seen.branches if b.kind == "branch" and not b.dead]
        if living and all(abs(eps / facts.prescribed - 1) < 0.05 for eps in living):
            return given
    return None


def spelt(given: Mapping[str, Any]) -> str:
    """Spell the `attach` call to paste."""
    return f"ls.attach(model, {', '.join(f'{name}={value!r}' for name, value in given.items())})"


def with_trial(findings: list[Finding], said: str, lines: tuple[str, ...], helps: bool) -> list[Finding]:
    """Put what was tried beside the findings that it mends; what did not help is not called a remedy."""
    first = True
    told = []
    for f in findings:
        if f.code in MENDED and f.severity != "info":
            f = replace(f, tried=said, lines=lines if first else ())
            if not helps:
                f = replace(f, remedy=f"none was found that helps: {f.remedy} was tried")
            first = False
        told.append(f)
    return told
