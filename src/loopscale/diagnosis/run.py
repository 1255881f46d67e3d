"""`diagnose(model)`: from a module to a diagnosis, in a handful of forward passes and one backward pass."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from loopscale.diagnosis.arnoldi import Spectrum
from loopscale.diagnosis.diagnosis import Diagnosis, Finding, verdict
from loopscale.diagnosis.finite import first_nonfinite
from loopscale.diagnosis.gradients import Gradients, gradients
from loopscale.diagnosis.initial import init_ratio
from loopscale.diagnosis.judge import CONTRACTIVE, Facts, judge
from loopscale.diagnosis.knob import Knob, find_knob
from loopscale.diagnosis.looprange import LoopRange, LossOf, loop_range
from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.measure import Pass, count_layers, loop_map, main_loop, measured_pass, with_far_gain
from loopscale.diagnosis.merge import merged
from loopscale.diagnosis.onestep import MakeOptimizer, train_a_little
from loopscale.diagnosis.overloops import OverLoops, over_loops
from loopscale.diagnosis.stated import Stated, listening, stated_for
from loopscale.diagnosis.steplaw import OneStep, one_step_law
from loopscale.diagnosis.tying import untied
from loopscale.errors import UserError
from loopscale.parameterization import Depth, residual_scale
from loopscale.probe.batch import LARGE, prepare
from loopscale.probe.passes import record
from loopscale.probe.tape import Tape
from loopscale.probe.untouched import untouched, unwrap

# Training copies costs four times the weights: above this many it is done only when an optimizer is given.
_SMALL = LARGE
# Loops beside the main one that are looked at as well.
_BESIDE = 8


@dataclass(frozen=True)
class _Asked:
    """What the caller wants besides the plain diagnosis."""

    loops_arg: str | None
    loops_range: tuple[int, int] | None
    seconds: float
    optimizer: MakeOptimizer | None
    data: Iterable[Any] | None
    loss: LossOf | None


def diagnose(
    model: nn.Module,
    batch: Any = None,
    *,
    loops_arg: str | None = None,
    loops_range: tuple[int, int] | None = None,
    seconds: float = 20.0,
    optimizer: MakeOptimizer | None = None,
    data: Iterable[Any] | None = None,
    loss: LossOf | None = None,
) -> Diagnosis:
    """Find the loop of any module and say what is wrong, where, why and what to try.

    `batch`: a tensor, a tuple (positional) or a dict (keywords); made up from the model's sizes when None.
    `loops_arg`: what sets N, when it cannot be guessed (an argument of forward, or "config.num_steps").
    `loops_range`: measure the output's change when N is varied between these; with `data` (batches) also the loss's, by
    `loss(output, batch)` or as the output tells it. `optimizer`: makes your optimiser from a model, for the one-step
    law; Adam otherwise, where the model is small. `seconds`: time for the loop map; below 1 no training steps are tried.
    The model is left bit-identical: weights, buffers, mode, hooks, gradients and random state.

    Raises `UserError`, one sentence, when the model cannot be run on the batch, is scripted or on the meta device, or
    when `loops_arg` sets nothing, or `loops_range` is asked of a model whose loops cannot be set.

    >>> diagnose(nn.Sequential(nn.Linear(4, 4))).codes
    {'not-looped'}
    """
    model = unwrap(model)
    with untouched(model, grads=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = prepare(model, batch)
        return _diagnose(model, batch, _Asked(loops_arg, loops_range, seconds, optimizer, data, loss))


def _diagnose(model: nn.Module, batch: Any, asked: _Asked) -> Diagnosis:
    with listening(model) as heard:
        tape, output = record(model, batch)
    loops = find_loops(model, tape)
    ties = list(untied(model, tape, loops))
    broken = first_nonfinite(model, batch, tape, output)
    knob = find_knob(model, batch, loops[0] if loops else None, asked.loops_arg)
    if asked.loops_range is not None and knob is None:
        raise UserError("the loops of this model cannot be varied: name what sets them with --loops-arg (loops_arg)")
    if not loops:
        return _not_looped(ties + broken, knob)
    main = main_loop(loops, tape)
    seen, far, spectrum, grads = _main_pass(model, batch, main, tape, asked.seconds, bool(broken))
    contracts = far is not None and far < CONTRACTIVE
    varied = over_loops(model, batch, knob, seen, contracts) if knob else None
    stated = _stated(model, main, loops, heard)
    facts = _facts(model, seen, far, varied, stated)
    findings = judge(facts)
    if any(f.code == "dead-branch" for f in findings):
        findings = _after_steps(model, batch, seen, findings, varied, stated)
    others = _beside(model, batch, loops, main, tape)
    facts = _with_siblings(facts, main, others)
    findings = merged([*findings, *(f for other in others for f in judge(other.facts))])
    stepped = _one_step(model, batch, knob, main, asked) if not broken else None
    ranged = (
        loop_range(model, batch, knob, main.visits, asked.loops_range, asked.data, asked.loss)
        if knob and asked.loops_range
        else None
    )
    found = tuple(merged([*broken, *ties, *findings]))
    return Diagnosis(
        looped=True,
        loops=main.visits,
        tied=not any(f.code == "untied" for f in found),
        growth=facts.growth.law if facts.growth else None,
        gain=facts.growth.gain if facts.growth else None,
        growth_over_loops=varied.law if varied else None,
        effective_scale=facts.scale,
        prescribed_scale=facts.prescribed,
        kappa=grads.kappa,
        spectral_radius=spectrum.radius if spectrum else None,
        findings=found,
        verdict=verdict(found, main.where),
        layers=facts.layers,
        loops_found=tuple(loop.to_json() for loop in loops),
        loops_argument=knob.name if knob else None,
        details=_details(facts, spectrum, grads, varied, stepped, ranged),
    )


def _stated(model: nn.Module, main: FoundLoop, loops: list[FoundLoop], heard: Mapping[str, Stated]) -> Stated | None:
    told = stated_for(model, main.modules, heard)
    if told is not None and told.kind == "attached" and any(loop.visits == told.loops for loop in loops):
        return replace(told, loops=main.visits)  # of several loops one handle counts one
    return told


def _one_step(model: nn.Module, batch: Any, knob: Knob | None, main: FoundLoop, asked: _Asked) -> OneStep | None:
    small = asked.seconds >= 1 and sum(p.numel() for p in model.parameters()) <= _SMALL
    return one_step_law(model, batch, knob, main.visits, asked.optimizer) if small or asked.optimizer else None


def _main_pass(
    model: nn.Module, batch: Any, main: FoundLoop, tape: Tape, seconds: float, broken: bool
) -> tuple[Pass, float | None, Spectrum | None, Gradients]:
    seen = measured_pass(model, batch, None, main, tape)
    if broken:
        return seen, None, None, Gradients(None, {}, (), ())
    far, spectrum = loop_map(model, batch, seen, seconds)
    return with_far_gain(seen, far), far, spectrum, _gradients(model, batch, seen)


@dataclass(frozen=True)
class _Other:
    loop: FoundLoop
    facts: Facts


def _beside(model: nn.Module, batch: Any, loops: list[FoundLoop], main: FoundLoop, tape: Tape) -> list[_Other]:
    """Further loops of the same pass: layers repeated one after the other, a second stage, cycles around cycles."""
    found = []
    begin, end = main.span
    apart = [o for o in loops if o.visits < main.visits or o.span[0] > end or o.span[1] < begin]
    for loop in [loop for loop in apart if loop is not main and loop.size * 20 >= main.size][:_BESIDE]:
        try:
            seen = measured_pass(model, batch, None, loop, tape)
            far, _ = loop_map(model, batch, seen, 0.0)
        except (RuntimeError, LookupError):
            continue
        # Without the far gain a norm around the loop would go unseen, and every such loop be called unscaled.
        if far is not None:
            found.append(_Other(loop, _facts(model, with_far_gain(seen, far), far, None)))
    return found


def _with_siblings(facts: Facts, main: FoundLoop, others: list[_Other]) -> Facts:
    """In layer-wise order the stream runs through one loop after the other: their layers and gains go together."""
    if main.order != "layer-wise":
        return facts
    same = [o.facts for o in others if o.loop.order == "layer-wise" and o.loop.visits == main.visits]
    layers = facts.layers + sum(other.layers for other in same)
    growth = facts.growth
    if growth is not None:
        gain = math.prod([growth.gain, *(other.growth.gain for other in same if other.growth)])
        growth = replace(growth, gain=gain)
    prescribed = residual_scale(Depth(facts.loops, layers), base_layers=_base(facts.stated))
    return replace(facts, layers=layers, prescribed=prescribed, growth=growth)


def _base(stated: Stated | None) -> int | None:
    return None if stated is None else stated.base_layers


def _gradients(model: nn.Module, batch: Any, seen: Pass) -> Gradients:
    try:
        return gradients(model, batch, seen.loop, seen.stream, seen.tape)
    except RuntimeError:  # the model detaches or changes in place what a gradient would need
        return Gradients(None, {}, (), ())


def _facts(
    model: nn.Module, seen: Pass, far: float | None, varied: OverLoops | None, stated: Stated | None = None
) -> Facts:
    layers = count_layers(seen.loop, seen.branches)
    return Facts(
        seen.loop.visits,
        layers,
        seen.loop.where,
        residual_scale(Depth(seen.loop.visits, layers), base_layers=_base(stated)),
        seen.branches,
        seen.growth,
        far,
        varied.scale_power if varied else None,
        init_ratio(model, seen.loop, seen.branches),
        seen.dtype,
        stated,
    )


def _after_steps(
    model: nn.Module,
    batch: Any,
    seen: Pass,
    findings: list[Finding],
    varied: OverLoops | None,
    stated: Stated | None,
) -> list[Finding]:
    """Judge a copy that was trained for a few steps, since dead branches hide the law."""
    try:
        trained = copy.deepcopy(model)
        train_a_little(trained, batch, steps=4)
        again = measured_pass(trained, batch, None)
        far, _ = loop_map(trained, batch, again, 0.0)
        again = with_far_gain(again, far)
        later = judge(_facts(trained, again, far, varied, stated))
    except (RuntimeError, LookupError, TypeError):
        return findings
    told = {f.code for f in findings}
    note = " (after 4 steps of training a copy)"
    extra = [
        replace(f, evidence=f.evidence + note) for f in later if f.code not in told and f.code != "double-depth-scale"
    ]
    return sorted(findings + extra, key=lambda f: ("error", "warning", "info").index(f.severity))


def _not_looped(findings: list[Finding], knob: Knob | None) -> Diagnosis:
    remedy = "point at the looped model, or name what sets its loops with --loops-arg"
    if knob is not None:
        remedy = (
            f"it was run at N = 1: set {knob.name!r} to more than 1 (on the command line with --loops), "
            "a loop of one visit needs no rule"
        )
    if not any(f.code == "untied" for f in findings):
        findings = [
            Finding(
                "not-looped",
                "error",
                "model",
                "no parameter acts twice on its own result in one forward pass",
                "every layer is visited once",
                remedy,
            ),
            *findings,
        ]
    said = f"not looped: {findings[0].evidence}; {findings[0].remedy}"
    return Diagnosis(
        False, 1, False, findings=tuple(findings), verdict=said, loops_argument=knob.name if knob else None
    )


def _details(
    facts: Facts,
    spectrum: Spectrum | None,
    grads: Gradients,
    varied: OverLoops | None,
    stepped: OneStep | None,
    ranged: LoopRange | None,
) -> dict[str, Any]:
    growth = facts.growth
    return {
        "norms": list(growth.norms) if growth else [],
        "growth_exponent": growth.exponent if growth else None,
        "growth_interval": list(growth.interval) if growth and growth.interval else None,
        "branches": [b.to_json() for b in facts.branches],
        "far_gain": facts.far_gain,
        "bounded_by": facts.bounded_by,
        "eigenvalue_moduli": [abs(v) for v in spectrum.values] if spectrum else [],
        "singular_value": spectrum.singular_value if spectrum else None,
        "spectrum_converged": spectrum.converged if spectrum else None,
        "kappa_by_parameter": grads.by_parameter,
        "kappa_left_out": list(grads.left_out),
        "gradient_by_visit": list(grads.weights),
        "stream_gradient_by_visit": list(grads.stream),
        "over_loops": varied.to_json() if varied else None,
        "init_ratio": facts.init_ratio,
        "base_layers": _base(facts.stated),
        "one_step": stepped.to_json() if stepped else None,
        "loops_range": ranged.to_json() if ranged else None,
    }
