"""`diagnose(model)`: find the loop, measure its symptoms, try what causes them, say what is wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from loopscale.diagnosis.arnoldi import Spectrum
from loopscale.diagnosis.branches import opened
from loopscale.diagnosis.causes import Facts, judge
from loopscale.diagnosis.diagnosis import Diagnosis, Finding, Symptom, finding, merged, verdict
from loopscale.diagnosis.experiments import Lever, grown, tested
from loopscale.diagnosis.finite import first_nonfinite
from loopscale.diagnosis.gradients import Gradients, gradients
from loopscale.diagnosis.growth import GAIN
from loopscale.diagnosis.initial import init_ratio
from loopscale.diagnosis.knob import Factory, Knob, candidates, find_knob, of_factory
from loopscale.diagnosis.looprange import LossOf, loop_range, settling
from loopscale.diagnosis.loops import FoundLoop, find_loops, in_turns
from loopscale.diagnosis.measure import (
    BESIDE,
    Pass,
    carried,
    count_layers,
    last_map,
    main_loop,
    measured_pass,
    unbounded,
    with_far_gain,
)
from loopscale.diagnosis.modules import table
from loopscale.diagnosis.onestep import A_FUNCTION, MakeOptimizer, OneStep, one_step_law, train_a_little
from loopscale.diagnosis.overloops import FROZEN, OverLoops, over_loops, with_drift
from loopscale.diagnosis.remedies import MENDED, attachable, edits, spelt, try_remedies, with_trial
from loopscale.diagnosis.setting import MOST_CALLS, Setting, frozen_in
from loopscale.diagnosis.stated import Stated, listening, stated_for
from loopscale.diagnosis.symptoms import EXPANDS, EXPANSION, ONE_STEP, REACH, Measured, symptoms, unexplained
from loopscale.diagnosis.tying import untied
from loopscale.diagnosis.whole import Modes, beside_at_zero, halts, idle, modes, restarts, unused_knobs
from loopscale.errors import UserError, expect, number, settings
from loopscale.parameterization import Depth, residual_scale
from loopscale.probe.batch import first_float, prepare, small
from loopscale.probe.tape import Tape, TooLong
from loopscale.probe.untouched import untouched, unwrap
from loopscale.speaker import unrestored

# Loops at which a model is diagnosed whose own number makes too long a pass.
FEWER = 32
# Loops beside the main one that are looked at as well.
MOST_BESIDE = 8


@dataclass(frozen=True)
class DiagnoseSettings:
    """What to do besides the plain diagnosis; `diagnose` takes each as a keyword."""

    loops_arg: str | None = None
    loops_range: tuple[int, int] | None = None
    products: int | None = None
    optimizer: MakeOptimizer | None = None
    data: Iterable[Any] | None = None
    loss: LossOf | None = None
    training: bool = False
    factory: Factory | None = None

    def __post_init__(self) -> None:
        """Raise `UserError` for a value that would be read otherwise than it is meant, or by nothing."""
        name, span, data, loss = self.loops_arg, self.loops_range, self.data, self.loss
        expect(name, name is None or (isinstance(name, str) and name != ""), "a name in loops_arg", "'config.n', say")
        if span is not None:
            fits = isinstance(span, (tuple, list)) and len(span) == 2
            expect(span, fits, "two numbers in loops_range", "such as loops_range=(1, 32)")
            low, high = (number("each end of loops_range", end, 1, whole=True) for end in span)
            if low > high:
                raise UserError(f"loops_range={span} goes down: give ({high}, {low})")
        if self.products is not None:
            number("products", self.products, 0, whole=True)
        expect(
            self.optimizer, self.optimizer is None or callable(self.optimizer), "a function in optimizer", A_FUNCTION
        )
        batches = isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping, torch.Tensor))
        expect(data, data is None or batches, "a list of batches in data", "such as data=[tokens]")
        expect(loss, loss is None or callable(loss), "a function in loss", "loss=lambda output, batch: ...")
        if data is not None and span is None:
            raise UserError("data= measures the loss over a range of loops: add loops_range=(1, 32), say")
        if loss is not None and data is None:
            raise UserError("loss= is taken on batches of data: add data=[batch] and loops_range=(1, 32), say")
        built = self.factory
        expect(built, built is None or callable(built), "a function in factory", "factory=make, which made the model")
        expect(self.training, isinstance(self.training, bool), "True or False in training", "such as training=True")


@dataclass(frozen=True)
class _First:
    """What the first pass shows: tape and output, the loops, what the model says of its scale, values that are not finite,
    weights that are not shared, what sets N.
    """

    setting: Setting
    asked: DiagnoseSettings
    tape: Tape
    output: Any
    loops: list[FoundLoop]
    heard: Mapping[str, Stated]
    broken: list[Finding]
    ties: list[Finding]
    knob: Knob | None


@dataclass(frozen=True)
class _Other:
    """A loop beside the main one."""

    seen: Pass
    facts: Facts


@dataclass(frozen=True)
class _Study:
    """The main loop of a model: what was seen, what makes it grow, what mends that, and other loops with their facts."""

    first: _First
    seen: Pass
    facts: Facts
    varied: OverLoops | None
    levers: list[Lever]
    others: list[_Other]


def diagnose(model: nn.Module, batch: Any = None, **keywords: Any) -> Diagnosis:
    """Find the loop of any module and say what is wrong, where, why and what to try.

    `batch`: a tensor, a tuple (positional) or a dict (keywords); made up from the model's sizes when None.

    Keywords, those of `DiagnoseSettings`: `loops_arg`: what sets N, when it cannot be guessed (an argument of forward, or
    "config.num_steps"). `loops_range`: measure the output's change when N is varied between these; with `data` (batches)
    also the loss's, by `loss(output, batch)` or as the output tells it. `optimizer`: makes your optimiser from a model, for
    the one-step law; Adam otherwise, where the model is small. `products`: how many products with the Jacobian to take, by
    the size of the model when None; at 0 none, and no training steps are tried. `training=True`: run the model in training
    mode, with dropout, sampled loops and statistics of the batch. `factory`: the function that made the model, whose
    arguments of whole numbers are tried as what sets N where nothing in the model does. Counts alone decide what is done,
    never a clock: the same model and batch give the same diagnosis, bit for bit.
    The model is left bit-identical: weights, buffers, mode, hooks, gradients and random state.

    Raises `UserError`, one sentence, when the model cannot be run on the batch, is scripted, on the meta device or a
    converted checkpoint without `restore`, or when a keyword is of the wrong kind or means nothing here: `loops_arg` sets
    nothing, the loops cannot be varied.

    >>> diagnose(nn.Sequential(nn.Linear(4, 4))).codes
    {'not-looped'}
    """
    model, asked = unwrap(model), settings(DiagnoseSettings, keywords, diagnose)
    if lost := unrestored(model):
        raise UserError(lost)
    frozen = frozen_in(model)
    with untouched(model, grads=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(asked.training)
        setting = Setting(model, prepare(model, batch), frozen=frozen)
        try:
            return _diagnose(setting, asked)
        except TooLong:
            return _shorter(setting, asked)
        except UserError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as cause:
            # A model may do something else at every call, or use what no tape can follow.
            line = (str(cause).strip().splitlines() or [""])[0][:160]
            raise UserError(
                f"the diagnosis could not go on after the first pass: {type(cause).__name__}: {line}"
            ) from cause


def _shorter(setting: Setting, asked: DiagnoseSettings) -> Diagnosis:
    """Diagnose a model whose pass is too long at fewer loops, and say so; raises `UserError` where N cannot be set."""
    for knob in [*candidates(setting.model), *of_factory(asked.factory, setting.model)]:
        if knob.value is None or knob.value <= FEWER:
            continue
        with knob.set(FEWER, setting) as there:
            try:
                found = _diagnose(there, asked)
            except TooLong:
                continue
        said = f"measured at {knob.name} = {FEWER} in the place of {knob.value}, whose pass is too long to be followed"
        healthy = found.verdict.replace("healthy", "no fault found", 1) if found.verdict.startswith("healthy") else None
        return replace(found, verdict=f"{healthy or found.verdict}; {said}")
    raise UserError(
        f"one pass makes more than {MOST_CALLS} torch calls, too many to be followed: build it with fewer loops (--loops)"
    )


def _diagnose(setting: Setting, asked: DiagnoseSettings) -> Diagnosis:
    model = setting.model
    with listening(model) as heard:
        tape, output = setting.run()
    loops = find_loops(model, tape)
    broken = first_nonfinite(setting, output)
    if broken and broken[0].evidence.startswith("parameter"):
        return _broken(loops, broken)  # nothing else follows from weights that are no numbers
    ties = list(untied(setting, tape, loops))
    knob = find_knob(setting, loops[0] if loops else None, asked.loops_arg, asked.factory)
    if asked.loops_range is not None and knob is None:
        raise UserError("the loops of this model cannot be varied: name what sets them with --loops-arg (loops_arg)")
    first = _First(setting, asked, tape, output, loops, heard, broken, ties, knob)
    return _looped(_studied(first)) if loops else _not_looped(first)


def _looped(study: _Study) -> Diagnosis:
    """Say what is wrong with a loop: causes and remedies, then what else was measured, then what nothing accounts for."""
    first, facts = study.first, study.facts
    findings, attach = _causes(study)
    measured = _measured(study)
    both, more = (None, []) if measured.broken else _whole(study, measured)
    again = restarts(first.tape, first.loops)[1]
    findings = merged([*first.broken, *first.ties, *findings, *more, *again])
    figures = symptoms(measured)
    left = unexplained(figures, findings, facts)
    if left and [s.name for s in figures if s.beyond] == [ONE_STEP]:
        # Steps open what is zero at first: then they say nothing of the loop that is there.
        left = beside_at_zero(first.setting, study.seen) or left
    findings = merged([*findings, *left])
    ranged, settled = _run_on(study)
    return Diagnosis(
        looped=True,
        loops=facts.loops,
        tied=not any(f.code == "untied" for f in findings),
        growth=facts.growth.law if facts.growth else None,
        gain=facts.growth.gain if facts.growth else None,
        growth_over_loops=study.varied.law if study.varied else None,
        effective_scale=facts.scale,
        prescribed_scale=facts.prescribed,
        kappa=measured.grads.kappa if measured.grads else None,
        spectral_radius=measured.spectrum.radius if measured.spectrum else None,
        findings=tuple(findings),
        verdict=verdict(findings, facts.where, figures),
        layers=facts.layers,
        loops_found=tuple(loop.to_json() for loop in first.loops),
        loops_argument=first.knob.name if first.knob else None,
        details={
            **_details(measured),
            "loops_range": ranged,
            "symptoms": [asdict(figure) for figure in figures],
            "modules": table(first.tape, first.output, study.seen.loop, measured.silent),
            "modes": asdict(both) if both else None,
            "settling": settled,
            "attach": attach,
        },
    )


def _studied(first: _First) -> _Study:
    """Study the main loop; where nothing accounts for its growth and its visits take turns, by rounds of them."""
    main = main_loop(first.loops, first.tape, first.knob.allows if first.knob else None)
    study = _study(first, main)
    growth = study.facts.growth
    if study.levers or growth is None or not growth.beyond:
        return study
    every = in_turns(first.tape, main)
    rounds = _study(first, main, every) if every > 1 else study
    return rounds if rounds.levers else study


def _study(first: _First, main: FoundLoop, every: int = 1) -> _Study:
    """Measure a loop and those beside it, and test what makes them grow."""
    setting, knob = first.setting, first.knob
    seen, *also = carried(setting, main, first.tape, every)
    if knob is not None:
        seen = with_drift(setting, knob, seen)
    varied = over_loops(setting, knob, seen) if knob else None
    if varied is not None and varied.grows and seen.far is not None and seen.far.contracts:
        seen = unbounded(seen)
    facts = _facts(setting.model, seen, varied, _stated(setting.model, main, first.loops, first.heard))
    others = _beside(first, main)
    facts, levers = tested(setting, seen, _with_siblings(facts, main, others), knob)
    facts = _contradicted(facts)
    others = [replace(other, facts=tested(setting, other.seen, other.facts)[0]) for other in others]
    mended = {site: part for lever in levers for site, part in lever.factors.items()}
    for other in also:  # what piles up because the stream does is mended with it
        left = grown(setting, other, mended)
        if left is not None and left.beyond:
            found, more = tested(setting, other, _facts(setting.model, other, None))
            others.append(_Other(other, found))
            levers += more
    return _Study(first, seen, facts, varied, levers, others)


def _contradicted(facts: Facts) -> Facts:
    """Return the facts with the law that fits the visits where a cause was shown for a growth beyond its limit."""
    growth = facts.growth
    if growth is None or facts.bounded_by or growth.law != "bounded" or growth.gain <= GAIN or not facts.shown.causes:
        return facts
    return replace(facts, growth=replace(growth, law=growth.unbounded))


def _causes(study: _Study) -> tuple[list[Finding], dict[str, Any] | None]:
    """Judge all loops, on a trained copy too where branches are dead; try the remedies, and give what `attach` takes."""
    findings = merged([*judge(study.facts), *(f for other in study.others for f in judge(other.facts))])
    if any(f.code == "dead-branch" for f in findings):
        findings = _behind_dead(study, findings)
    return _tried(study, findings)


def _whole(study: _Study, measured: Measured) -> tuple[Modes | None, list[Finding]]:
    """Look at the loop within its model: the map, both modes, idle, halting, knobs, and how far the gradient reaches."""
    first, seen = study.first, study.seen
    setting, main, knob = first.setting, seen.loop, first.knob
    both, differ = modes(setting, seen)
    loop = [*_expanding(measured), *differ, *idle(setting, seen, first.output), *halts(setting, seen, knob)]
    return both, [*loop, *unused_knobs(setting, main, knob, first.asked.factory), *_truncated(measured)]


def _run_on(study: _Study) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Run at other numbers of loops: the safe range, where it is asked for, and whether the answer settles."""
    first, loops = study.first, study.facts.loops
    setting, knob, span = first.setting, first.knob, first.asked.loops_range
    if knob is None:
        return None, None
    ranged = loop_range(setting, knob, loops, span, first.asked.data, first.asked.loss) if span else None
    settles = not first.broken and (span or small(setting.model))
    return ranged.to_json() if ranged else None, settling(setting, knob, loops) if settles else None


def _broken(loops: list[FoundLoop], broken: list[Finding]) -> Diagnosis:
    visits = loops[0].visits if loops else 1
    where = loops[0].where if loops else "model"
    found = tuple(loop.to_json() for loop in loops)
    missing = [asdict(Symptom("finite values", 0.0, 1.0, True, told="not all"))]
    return Diagnosis(
        bool(loops),
        visits,
        bool(loops),
        findings=tuple(broken),
        verdict=verdict(broken, where),
        loops_found=found,
        details={"symptoms": missing},
    )


def _measured(study: _Study) -> Measured:
    """Measure what is left of a loop whose values are finite: the map of the last visit, gradients, one step."""
    first, why = study.first, dict[str, str]()
    if first.broken:
        return Measured(study.facts, study.varied, None, None, None, True, why)
    spectrum = _spectrum(first.setting, study.seen, first.asked.products, why)
    grads = _gradients(first.setting, study.seen, why)
    return Measured(study.facts, study.varied, _one_step(study, why), spectrum, grads, False, why)


def _one_step(study: _Study, why: dict[str, str]) -> OneStep | None:
    first, facts, seen = study.first, study.facts, study.seen
    asked = first.asked
    cheap = asked.products != 0 and small(first.setting.model)
    frozen = facts.scale_power is not None and abs(facts.scale_power) < FROZEN and (facts.scale or 1.0) < 0.9
    beside = [b for other in study.others if other.facts.loops == facts.loops for b in other.facts.branches]
    stepped = None
    shapes = {seen.tape.nodes[i].shape for i in seen.stream.states} if seen.stream else set()
    if len(shapes) > 1:
        why[ONE_STEP] = "the stream has another shape at every visit"
        return None
    if cheap or asked.optimizer:
        stepped = one_step_law(first.setting, first.knob, seen, asked.optimizer, beside if frozen else None)
    if stepped is None:
        large = "products is 0" if asked.products == 0 else "more than 25 million weights: give optimizer="
        why[ONE_STEP] = "the output has no gradient" if cheap else large
        return None
    acting = {name for node in seen.tape.nodes for key in node.params for name in seen.tape.names.get(key, [])}
    return replace(stepped, without_gradient=tuple(n for n in stepped.without_gradient if n in acting))


def _spectrum(setting: Setting, seen: Pass, products: int | None, why: dict[str, str]) -> Spectrum | None:
    if products == 0:
        why[EXPANSION] = "products is 0"
        return None
    try:
        return last_map(setting, seen, products)
    except (RuntimeError, LookupError, ValueError) as cause:
        why[EXPANSION] = f"the visit cannot be run again: {type(cause).__name__}"
        return None


def _gradients(setting: Setting, seen: Pass, why: dict[str, str]) -> Gradients | None:
    try:
        found = gradients(setting.model, setting.batch, seen.loop, seen.stream, seen.tape)
    except (RuntimeError, LookupError, ValueError):  # the model detaches or changes in place what a gradient would need
        why[REACH] = "the model changes in place, or detaches, what a gradient needs"
        return None
    if found.reached is None:
        why[REACH] = "no gradient reaches the loop, as where it runs under no_grad in evaluation mode"
    return found


def _expanding(measured: Measured) -> list[Finding]:
    """Return a loop without a skip whose visits multiply differences."""
    facts, spectrum = measured.facts, measured.spectrum
    if spectrum is None or not spectrum.radius > EXPANDS or facts.carried:
        return []
    growth = facts.growth
    grown = growth is not None and growth.gain > 2 and growth.law != "bounded"
    said = f"spectral radius {spectrum.radius:.3g} at the last visit, no skip past all of the block"
    if growth is not None:
        said += f"; gain {growth.gain:.3g} over {facts.loops} visits"
    return [finding("expanding-map", facts.where, said, "error" if grown else "warning")]


def _truncated(measured: Measured) -> list[Finding]:
    grads = measured.grads
    if grads is None or grads.reached is None or grads.reached >= grads.read:
        return []
    said = f"the gradient reaches {grads.reached} of {grads.read} visits"
    return [finding("truncated-gradient", measured.facts.where, said)]


def _tried(study: _Study, findings: list[Finding]) -> tuple[list[Finding], dict[str, Any] | None]:
    """Try the remedies together; give the findings, and the keywords of `attach`."""
    setting, facts = study.first.setting, study.facts
    if not {f.code for f in findings if f.severity != "info"} & MENDED:
        return findings, None

    def facts_of(now: Pass) -> Facts:
        made = _facts(setting.model, now, None, facts.stated)
        return replace(made, layers=facts.layers, prescribed=facts.prescribed)

    trial = try_remedies(setting, study.seen, facts, study.levers, facts_of, study.first.knob)
    if trial is None:
        return findings, None
    gain = facts.growth.gain if facts.growth else math.inf
    helps = not trial.left and (trial.gain <= max(2.0, gain) or not math.isfinite(gain))
    names = [b.where for other in study.others if _sibling(other, facts.loops) for b in other.facts.living]
    attach = attachable(setting.model, setting.batch, facts, trial, names) if helps else None
    # Beside an attach that takes a constant into its strength: where the constant itself can be changed.
    lines = edits(trial) if not attach or "strength" in attach else ()
    if attach:
        lines = (spelt(attach, setting.model), *lines)
    return with_trial(findings, trial.said(facts, facts.over), lines, helps), attach


def _stated(model: nn.Module, main: FoundLoop, loops: list[FoundLoop], heard: Mapping[str, Stated]) -> Stated | None:
    told = stated_for(model, main.modules, heard)
    if told is not None and told.kind == "attached" and any(loop.visits == told.loops for loop in loops):
        return replace(told, loops=main.visits)  # of several loops one handle counts one
    return told


def _beside(first: _First, main: FoundLoop) -> list[_Other]:
    """Measure further loops of the same pass: layers repeated one after the other, a second stage, cycles around cycles."""
    setting, found = first.setting, []
    begin, end = main.span
    apart = [o for o in first.loops if o.visits < main.visits or o.span[0] > end or o.span[1] < begin]
    for loop in [loop for loop in apart if loop is not main and loop.size * BESIDE >= main.size][:MOST_BESIDE]:
        if set(loop.modules) <= set(main.modules):
            continue  # weights of the main loop that some visits skip, as routing does
        try:
            seen = with_far_gain(setting, measured_pass(setting, loop, first.tape))
        except (RuntimeError, LookupError):
            continue
        # Without the far gain a norm around the loop would go unseen, and every such loop be called unscaled.
        if seen.far is not None:
            found.append(_Other(seen, _facts(setting.model, seen, None)))
    return found


def _sibling(other: _Other, visits: int) -> bool:
    return other.seen.loop.order == "layer-wise" and other.seen.loop.visits == visits


def _with_siblings(facts: Facts, main: FoundLoop, others: list[_Other]) -> Facts:
    """Join loops in layer-wise order: the stream runs through one after the other, their layers and gains go together."""
    if main.order != "layer-wise":
        return facts
    same = [o.facts for o in others if _sibling(o, main.visits)]
    layers = facts.layers + sum(other.layers for other in same)
    growth = facts.growth
    if growth is not None:
        gain = math.prod([growth.gain, *(other.growth.gain for other in same if other.growth)])
        growth = replace(growth, gain=gain)
    prescribed = residual_scale(Depth(facts.loops, layers), base_layers=_base(facts.stated))
    for place, other in enumerate(others):
        if other.facts in same:
            others[place] = replace(other, facts=replace(other.facts, layers=layers, prescribed=prescribed))
    return replace(facts, layers=layers, prescribed=prescribed, growth=growth)


def _base(stated: Stated | None) -> int | None:
    return None if stated is None else stated.base_layers


def _facts(model: nn.Module, seen: Pass, varied: OverLoops | None, stated: Stated | None = None) -> Facts:
    layers = count_layers(model, seen.loop, seen.branches)
    return Facts(
        seen.loop.visits,
        layers,
        seen.loop.where,
        residual_scale(Depth(seen.loop.visits, layers), base_layers=_base(stated)),
        seen.branches,
        seen.growth,
        seen.far,
        varied.scale_power if varied else None,
        init_ratio(model, seen.tape, seen.loop, seen.branches),
        seen.dtype,
        stated,
        varied.exponent if varied else None,
    )


def _behind_dead(study: _Study, findings: list[Finding]) -> list[Finding]:
    """Judge what dead branches hide: with gates that are zero opened, else on a copy that was trained for a few steps."""
    setting, stated = study.first.setting, study.facts.stated
    try:
        with opened(study.seen) as gates:
            if gates:
                later = judge(_alive(setting, study.first.knob, stated))
                note = f" (with {', '.join(gates[:2])} set to 1)"
            else:
                trained = setting.copied()
                train_a_little(trained)
                later = judge(_alive(trained, None, stated))
                note = " (after 4 steps of training a copy)"
    except (RuntimeError, LookupError, TypeError):
        return findings
    told = {f.code for f in findings} | {"double-depth-scale", "norm-bounded"}
    return merged([*findings, *(replace(f, evidence=f.evidence + note) for f in later if f.code not in told)])


def _alive(setting: Setting, knob: Knob | None, stated: Stated | None) -> Facts:
    now = with_far_gain(setting, measured_pass(setting))
    varied = over_loops(setting, knob, now) if knob else None
    return tested(setting, now, _facts(setting.model, now, varied, stated), knob)[0]


def _not_looped(first: _First) -> Diagnosis:
    knob = first.knob
    visits, again = restarts(first.tape, first.loops)
    findings = [*first.broken, *(first.ties or [*again, *unused_knobs(first.setting, None, knob, first.asked.factory)])]
    remedy = "point at the looped model, or name what sets its loops with --loops-arg"
    if knob is not None:
        remedy = (
            f"it was run at N = 1: set {knob.name!r} to more than 1 (on the command line with --loops), "
            "a loop of one visit needs no rule"
        )
    if not {f.code for f in findings} & {"untied", "restarts"}:
        said = "no parameter acts twice on its own result in one forward pass"
        value = first_float(first.output)
        end = None if value is None else first.tape.node_of(value)
        if end is None or not first.tape.nodes[end].data:
            said += (
                ", as far as is seen: the answer comes from calls that show torch nothing (scripted, custom kernels)"
            )
        findings = [finding("not-looped", "model", said, remedy=remedy), *findings]
    said = f"not looped: {findings[0].evidence}; {findings[0].remedy}"
    return Diagnosis(
        False, visits, False, findings=tuple(findings), verdict=said, loops_argument=knob.name if knob else None
    )


def _details(measured: Measured) -> dict[str, Any]:
    facts, spectrum, grads = measured.facts, measured.spectrum, measured.grads or Gradients(None, {}, (), ())
    growth = facts.growth
    return {
        "norms": list(growth.norms) if growth else [],
        "growth_exponent": growth.exponent if growth else None,
        "growth_interval": list(growth.interval) if growth and growth.interval else None,
        "branches": [b.to_json() for b in facts.branches],
        "far_gain": facts.far.visit if facts.far else None,
        "bounded_by": facts.bounded_by,
        "eigenvalue_moduli": [abs(v) for v in spectrum.values] if spectrum else [],
        "singular_value": spectrum.singular_value if spectrum else None,
        "spectrum_converged": spectrum.converged if spectrum else None,
        "kappa_by_parameter": grads.by_parameter,
        "kappa_left_out": list(grads.left_out),
        "gradient_by_visit": list(grads.weights),
        "stream_gradient_by_visit": list(grads.stream),
        "gradient_reach": grads.reached,
        "over_loops": measured.varied.to_json() if measured.varied else None,
        "init_ratio": facts.init_ratio,
        "base_layers": _base(facts.stated),
        "strength": facts.stated.strength if facts.stated else None,
        "one_step": measured.stepped.to_json() if measured.stepped else None,
    }
