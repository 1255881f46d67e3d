"""Try remedies before they are printed: the user's forward runs again with other factors on its additions.

All that is found is mended together and measured again, until nothing more is found; so a remedy that takes two steps (a
nested skip, then eps) is one. The numbers before and after stand beside the remedy.
"""

from __future__ import annotations

import ast
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
from loopscale.diagnosis.experiments import Lever, slope_over, tested
from loopscale.diagnosis.growth import GAIN, OVER
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass, again, measured_pass, with_far_gain
from loopscale.diagnosis.setting import Factors, Setting
from loopscale.errors import UserError
from loopscale.probe.batch import prepare, small
from loopscale.probe.tape import Site

MENDED = frozenset(
    "unscaled-residual sqrt-scaled nested-skip unscaled-injection double-depth-scale expanding-map".split()
)
# More rounds than kinds of trouble that a factor mends would repeat themselves.
ROUNDS = 4
FactsOf = Callable[[Pass], Facts]


@dataclass(frozen=True)
class Trial:
    """The factors that mend the loop, the numbers after them, and the codes that are left."""

    factors: Mapping[Any, tuple[int, float]]
    gain: float
    left: frozenset[str]
    kinds: tuple[tuple[Branch, int, float], ...]
    slope: float | None = None

    def said(self, before: Facts, slope: float | None) -> str:
        """Spell what the remedies did, all together."""
        gain = before.growth.gain if before.growth else float("nan")
        over = "" if slope is None or self.slope is None else f", slope over N {slope:+.2f} -> {self.slope:+.2f}"
        then = "then no finding" if not self.left else f"then {', '.join(sorted(self.left))}"
        return f"with all remedies: gain {gain:.3g} -> {self.gain:.3g}{over}, {then}"


def try_remedies(
    setting: Setting, seen: Pass, facts: Facts, first: list[Lever], facts_of: FactsOf, knob: Knob | None
) -> Trial | None:
    """Mend and measure until nothing is found that a factor mends; None where no factor can be put on what is found."""
    factors: Factors = {}
    kinds: dict[tuple[Site, int], tuple[Branch, int, float]] = {}
    now, known, levers = seen, facts, first
    for _ in range(ROUNDS):
        step = [part for lever in levers for part in lever.parts]
        if not step:
            break
        new = {site: (operand, factor) for b, operand, factor in step for site in b.sites}
        for b, operand, factor in step:
            before = kinds.setdefault((b.sites[0], operand), (b, operand, 1.0))
            kinds[b.sites[0], operand] = (*before[:2], before[2] * factor)
        factors = setting.changed(factors).changed(new).factors
        changed = replace(setting, factors=factors)
        found = again(changed, seen)
        if found is None or found.growth is None:
            return None
        now = with_far_gain(changed, found)
        known, levers = tested(changed, now, replace(facts_of(now), init_ratio=None, scale_power=None))
    if not factors or now.growth is None:
        return None
    left = {f.code for f in judge(known) if f.severity != "info"}
    slope = slope_over(setting, seen, factors, knob, 1 - (facts.scale_power or 0.0), now)
    if not left and (now.growth.beyond or ((slope or 0.0) > OVER and now.growth.gain > GAIN)):
        left = {"growth-unexplained"}
    return Trial(factors, now.growth.gain, frozenset(left), tuple(kinds.values()), slope)


def edits(trial: Trial) -> tuple[str, ...]:
    """Return the lines that the remedies change, in the user's own files: what stands there and what to do with it.

    The numbers are those that were tried: the factor to write, and what the scale comes to with it.
    """
    told: dict[str, list[str]] = {}
    for branch, place, factor in trial.kinds:
        if branch.kind == "weights":
            told[f"model.get_parameter({branch.where!r}).data.mul_({factor:.4g})"] = ["once, before training"]
            continue
        site = next((s for s in branch.sites if s.file), None)
        if site is None:
            continue
        source = linecache.getline(site.file, site.line).strip()
        told.setdefault(f"{site}: {source[:90]}", []).append(_edit(branch, place, factor, site))
    return tuple(f"{line}   # {'; '.join(dict.fromkeys(what))}" for line, what in list(told.items())[:6])


def _edit(branch: Branch, place: int, factor: float, site: Site) -> str:
    if branch.nested and 0 < factor < 1:
        return f"multiply the block's result by {factor:.4g}, or read the streams as a mean and add the update alone"
    if not factor:
        past = branch.kind == "inject"
        return "keep the last state alone" if past else "leave out the skip: keep the block's result alone"
    skip = branch.kind != "scale" and place == branch.other
    before = branch.carry if skip else branch.scale
    what = _written(site, place) or (
        "what it is added to" if skip else "the stream" if branch.kind == "scale" else "what is added"
    )
    becomes = "" if abs(before - 1) < 1e-3 else f": {before:.4g} becomes {before * factor:.4g}"
    return f"multiply {what} by {factor:.4g}{becomes}"


def _written(site: Site, place: int) -> str:
    """Spell the operand of an addition as it stands in the code; empty where that is not told."""
    end, column, last = (*site.at[1:], None, None, None)[:3]
    lines = [linecache.getline(site.file, n) for n in range(site.line, (end or 0) + 1)]
    if not lines or column is None or last is None:
        return ""
    lines[-1] = lines[-1].encode()[:last].decode(errors="ignore")
    text = (
        lines[0].encode()[column:].decode(errors="ignore") + "".join(lines[1:]) if len(lines) > 1 else lines[0][column:]
    )
    try:
        node: Any = ast.parse(text.strip()).body[0]
    except (SyntaxError, IndexError, ValueError):
        return ""
    node = getattr(node, "value", node) if isinstance(node, ast.Expr) else node
    operands = [node.target, node.value] if isinstance(node, ast.AugAssign) else []
    operands = [node.left, node.right] if isinstance(node, ast.BinOp) else operands
    spelt = ast.unparse(operands[place]) if place < len(operands) else ""
    return f"`{spelt}`" if 0 < len(spelt) <= 60 else ""


def attachable(
    model: nn.Module, batch: Any, facts: Facts, trial: Trial, beside: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return the keywords of the `attach` that does what the trial did to the branches.

    Tried on a copy, None where it refuses.

    `beside`: branches of layers that are looped one after the other, with the same N.
    """
    scaled = [
        b for b, p, factor in trial.kinds if b.kind == "branch" and p != b.other and 0 < factor < 1 and not b.nested
    ]
    if not scaled or len(scaled) != len(trial.kinds):
        return None
    names = list(dict.fromkeys([*(b.where for b in scaled), *beside]))
    plain = {"loops": facts.loops, "layers": facts.layers}
    for given in ({**plain, "branches": names}, plain):
        scales = _attached_scales(model, batch, given)
        if not scales or max(scales) > 1.05 * min(scales):
            continue
        off = scales[0] / facts.prescribed
        if abs(off - 1) < 0.05:
            return given
        # A constant of the model's own between branch and addition: the strength takes it in.
        given = {**given, "strength": float(f"{1 / off:.4g}")}
        scales = _attached_scales(model, batch, given)
        if scales and all(abs(eps / facts.prescribed - 1) < 0.05 for eps in scales):
            return given
    return None


def _attached_scales(model: nn.Module, batch: Any, given: Mapping[str, Any]) -> list[float]:
    """Attach to a copy and measure the factor of each branch that acts; empty where `attach` refuses."""
    from loopscale.adapt import attach

    try:
        copied = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The measure below is the check of a large model, whose passes cost more.
            attach(copied, batch=batch, check=small(model), **given)
        seen = measured_pass(Setting(copied, batch))
    except Exception:  # a model may refuse in any way
        return []
    return [b.scale for b in seen.branches if b.kind == "branch" and not b.dead]


def spelt(given: Mapping[str, Any], model: nn.Module) -> str:
    """Spell the `attach` call to paste, with a batch where none can be made up."""
    words = [f"{name}={value!r}" for name, value in given.items()]
    try:
        prepare(model, None)
    except UserError:
        words.append("batch=batch")
    return f"ls.attach(model, {', '.join(words)})"


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
