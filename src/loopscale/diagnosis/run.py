"""`diagnose(model)`: from a module to a diagnosis, in a handful of forward passes and one backward pass."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from loopscale.diagnosis.arnoldi import Spectrum, leading_eigenvalues
from loopscale.diagnosis.batch import prepare
from loopscale.diagnosis.branches import Branch, measure, rms, wanted
from loopscale.diagnosis.diagnosis import Diagnosis, Finding, verdict
from loopscale.diagnosis.finite import first_nonfinite
from loopscale.diagnosis.gradients import Gradients, gradients
from loopscale.diagnosis.growth import Growth, growth_law
from loopscale.diagnosis.initial import init_ratio
from loopscale.diagnosis.judge import Facts, judge
from loopscale.diagnosis.knob import Knob, find_knob
from loopscale.diagnosis.loopmap import LoopMap
from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.onestep import train_a_little
from loopscale.diagnosis.overloops import OverLoops, over_loops
from loopscale.diagnosis.passes import record
from loopscale.diagnosis.stream import Stream, follow
from loopscale.diagnosis.tape import Tape
from loopscale.diagnosis.tying import untied
from loopscale.diagnosis.untouched import untouched, unwrap
from loopscale.parameterization import Depth, residual_scale


@dataclass(frozen=True)
class Pass:
    """One measured forward pass: the loop, its stream and what its steps did."""

    tape: Tape
    loop: FoundLoop
    stream: Stream | None
    branches: tuple[Branch, ...]
    growth: Growth | None
    dtype: str


def diagnose(
    model: nn.Module,
    batch: Any = None,
    *,
    loops_arg: str | None = None,
    loops_range: tuple[int, int] | None = None,
    seconds: float = 20.0,
) -> Diagnosis:
    """Find the loop of any module and say what is wrong, where, why and what to try.

    `batch`: a tensor, a tuple (positional) or a dict (keywords); made up from the model's sizes when None.
    `loops_arg`: what sets N, when it cannot be guessed (an argument of forward, or "config.num_steps").
    `loops_range`: measure the output's change when N is varied between these. `seconds`: time for the loop map.
    The model is left bit-identical: weights, buffers, mode, hooks, gradients and random state.

    Raises `UserError`, one sentence, when the model cannot be run on the batch, is scripted or on the meta device, or
    when `loops_arg` sets nothing.

    >>> diagnose(nn.Sequential(nn.Linear(4, 4))).codes
    {'not-looped'}
    """
    model = unwrap(model)
    with untouched(model, grads=True):
        batch = prepare(model, batch)
        return _diagnose(model, batch, loops_arg, loops_range, seconds)


def _diagnose(
    model: nn.Module, batch: Any, loops_arg: str | None, loops_range: tuple[int, int] | None, seconds: float
) -> Diagnosis:
    tape, output = record(model, batch)
    loops = find_loops(model, tape)
    ties = list(untied(model, tape, loops))
    broken = first_nonfinite(model, batch, tape, output)
    knob = find_knob(model, batch, loops[0] if loops else None, loops_arg)
    if not loops:
        return _not_looped(ties + broken, knob)
    main = _main(loops, tape)
    seen = measured_pass(model, batch, None, main)
    extra_findings: list[Finding] = [*broken, *ties]
    far, spectrum, grads = None, None, Gradients(None, {}, (), ())
    if not broken:
        far, spectrum = _loop_map(model, batch, seen, seconds)
        seen = _with_far_gain(seen, far)
        grads = _gradients(model, batch, seen)
    varied = over_loops(model, batch, knob, main, loops_range) if knob else None
    facts = _facts(model, seen, far, varied)
    findings = judge(facts)
    if any(f.code == "dead-branch" for f in findings):
        findings = _after_steps(model, batch, seen, findings, varied)
    found = tuple(sorted([*extra_findings, *findings], key=lambda f: ("error", "warning", "info").index(f.severity)))
    return Diagnosis(
        looped=True,
        loops=main.visits,
        tied=not any(f.code == "untied" for f in found),
        growth=seen.growth.law if seen.growth else None,
        gain=seen.growth.gain if seen.growth else None,
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
        details=_details(facts, spectrum, grads, varied),
    )


def measured_pass(model: nn.Module, batch: Any, extra: Mapping[str, Any] | None, loop: FoundLoop | None = None) -> Pass:
    """Run once to find the loop (unless given) and once to measure its stream."""
    tape, _ = record(model, batch, extra)
    if loop is None:
        loops = find_loops(model, tape)
        if not loops:
            raise LookupError("not looped at this setting")
        loop = _main(loops, tape)
    first = _measured(model, batch, extra, tape, loop, 0)
    if first.growth is not None and first.growth.norms[-1] <= 1e-6 * max(first.growth.norms):
        # A momentum that is still zero, not the stream.
        second = _measured(model, batch, extra, tape, loop, 1)
        first = second if second.growth is not None else first
    if first.growth is not None and not any(first.growth.norms):
        return replace(first, growth=None)
    return first


def _measured(
    model: nn.Module, batch: Any, extra: Mapping[str, Any] | None, tape: Tape, loop: FoundLoop, rank: int
) -> Pass:
    stream = follow(tape, loop, rank)
    if stream is None:
        return Pass(tape, loop, None, (), None, "unknown")
    again, _ = record(model, batch, extra, keep=wanted(tape, stream))
    values = again.values
    if any(state not in values and state >= len(tape.nodes) for state in stream.states):
        return Pass(tape, loop, None, (), None, "unknown")
    for index in stream.states:
        if index not in values:
            values[index] = again._roots[index]
    branches = tuple(measure(tape, stream, values))
    states = [values[index] for index in stream.states]
    moved = [rms(s.float() - states[0].float()) if s.shape == states[0].shape else rms(s) for s in states]
    growth = growth_law([rms(s) for s in states], moved, _time(loop, branches))
    return Pass(tape, loop, stream, branches, growth, str(states[0].dtype).removeprefix("torch."))


def _time(loop: FoundLoop, branches: tuple[Branch, ...]) -> float | None:
    """N * eps of the strongest kind of addition: about 1 when more visits would not add more."""
    living = [b.scale for b in branches if b.kind == "branch" and not b.dead]
    injected = [b.scale for b in branches if b.kind == "inject" and b.sizes and max(b.sizes) > 0]
    means = [sum(part) / len(part) for part in (living, injected) if part]
    return max(means) * loop.visits if means else None


def _with_far_gain(seen: Pass, far: float | None) -> Pass:
    if seen.growth is None or far is None:
        return seen
    time_ = _time(seen.loop, seen.branches)
    return replace(seen, growth=growth_law(seen.growth.norms, seen.growth.moved, time_, far))


def count_layers(loop: FoundLoop, branches: tuple[Branch, ...]) -> int:
    """L: attention branches when there are any (attention and MLP make one layer), else branches or looped modules."""
    attention = sum(b.attention for b in branches if b.kind == "branch")
    if attention:
        return attention
    plain = sum(b.kind == "branch" for b in branches)
    return max(1, plain or len(loop.modules))


def _main(loops: list[FoundLoop], tape: Tape) -> FoundLoop:
    """The loop with most shared weights that has a stream to follow."""
    return next((loop for loop in loops if follow(tape, loop) is not None), loops[0])


def _loop_map(model: nn.Module, batch: Any, seen: Pass, seconds: float) -> tuple[float | None, Spectrum | None]:
    if seen.stream is None or len(seen.stream.states) < 3:
        return None, None
    start, end = seen.stream.states[1], seen.stream.states[2]
    loop_map = LoopMap(model, batch, None, start, end)
    far = loop_map.far_gain()
    if loop_map.point.shape != loop_map.image.shape:
        return far, None
    begun = time.perf_counter()
    loop_map.jvp(torch.ones_like(loop_map.point))
    spent = time.perf_counter() - begun
    most = 300 if spent < 0.02 else max(8, int(seconds / 2 / max(spent, 1e-6)))
    spectrum = leading_eigenvalues(loop_map.jvp, loop_map.point, most=min(most, 300), seconds=seconds / 2)
    return far, replace(spectrum, singular_value=_singular(loop_map, min(most, 24), seconds / 4))


def _singular(loop_map: LoopMap, most: int, seconds: float) -> float | None:
    """The largest singular value of the Jacobian, by Lanczos on J^T J; None where no gradient comes back."""
    try:
        square = leading_eigenvalues(
            lambda v: loop_map.vjp(loop_map.jvp(v)), loop_map.point, most=most, seconds=seconds, tolerance=1e-2
        )
    except RuntimeError:
        return None
    return math.sqrt(square.radius)


def _gradients(model: nn.Module, batch: Any, seen: Pass) -> Gradients:
    try:
        ops = [node.op for node in seen.tape.nodes]
        return gradients(model, batch, None, seen.loop, seen.stream, seen.tape.names, ops)
    except RuntimeError:  # the model detaches or changes in place what a gradient would need
        return Gradients(None, {}, (), ())


def _facts(model: nn.Module, seen: Pass, far: float | None, varied: OverLoops | None) -> Facts:
    layers = count_layers(seen.loop, seen.branches)
    return Facts(
        seen.loop.visits,
        layers,
        seen.loop.where,
        residual_scale(Depth(seen.loop.visits, layers)),
        seen.branches,
        seen.growth,
        far,
        varied.scale_power if varied else None,
        init_ratio(model, seen.loop, seen.branches),
        seen.dtype,
    )


def _after_steps(
    model: nn.Module, batch: Any, seen: Pass, findings: list[Finding], varied: OverLoops | None
) -> list[Finding]:
    """Judge a copy that was trained for a few steps, since dead branches hide the law."""
    try:
        trained = copy.deepcopy(model)
        train_a_little(trained, batch, steps=4)
        again = measured_pass(trained, batch, None)
        far, _ = _loop_map(trained, batch, again, 0.0)
        again = _with_far_gain(again, far)
        later = judge(_facts(trained, again, far, varied))
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
        remedy = f"it was run at N = 1: set {knob.name!r} to more than 1, a loop of one visit needs no rule"
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


def _details(facts: Facts, spectrum: Spectrum | None, grads: Gradients, varied: OverLoops | None) -> dict[str, Any]:
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
        "gradient_by_visit": list(grads.weights),
        "stream_gradient_by_visit": list(grads.stream),
        "over_loops": varied.to_json() if varied else None,
        "init_ratio": facts.init_ratio,
    }
