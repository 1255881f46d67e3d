"""The loop within its model: is it used, does it restart, is it the same in training, does the knob act?"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopscale.diagnosis.branches import LOST, owner, rms
from loopscale.diagnosis.diagnosis import Finding, finding
from loopscale.diagnosis.knob import SIZES, Factory, Knob, acts, candidates, of_factory
from loopscale.diagnosis.loops import LOOKUPS, FoundLoop, find_loops
from loopscale.diagnosis.measure import Pass, anew
from loopscale.diagnosis.setting import Setting
from loopscale.diagnosis.stream import ADDS, is_node, strip
from loopscale.probe.batch import first_float
from loopscale.probe.tape import Key, Place, Tape, TooLong, storage_key
from loopscale.probe.walks import ancestors, descendants

# Leaving the loop out moves the output by less than this share: it is idle.
IDLE = 1e-3
# Gains of training and evaluation that differ by more than this factor are two different streams.
DIFFER = 1.5
# A loop that nothing halts and that goes on for so many times its own visits has no most.
ENDLESS = 8
# Names that can mean nothing but a number of loops.
PLAIN = re.compile(
    r"^(n|num|max|total|mean)?_?(loops?|recurrences?|recurs|recur|visits|unrolls?|ut_steps|cycles|iterations|iters)$"
)
# Arguments of a factory that may be as many as the visits, change nothing, and ask for no loops.
APART = re.compile(
    r"len|seq|ctx|context|layer|batch|rows|worker|thread|epoch|every|interval|patience|warmup|version|bits"
)
STEPS = re.compile(r"^(n|num|max|total)?_?(steps|iterations|iters|hops|repeats)$")


def idle(setting: Setting, seen: Pass, output: Any) -> list[Finding]:
    """Find a loop whose result the output does not read, or which changes it by next to nothing when it is left out."""
    value, stream = first_float(output), seen.stream
    if value is None or stream is None or any(b.learned or b.dead or b.absorbed > LOST for b in seen.branches):
        return []
    if not bool(value.any()):  # a readout that starts at zero reads nothing yet
        return []
    end = seen.tape.node_of(value)
    last = stream.states[-1]
    if end is None or len(stream.states) <= seen.loop.visits:
        return []
    used = {i for chain in seen.loop.uses.values() for i in chain if i > stream.states[0]}
    if not ancestors(seen.tape.nodes, end, 0) & used:
        return [finding("idle-loop", seen.loop.where, "the output is computed without the loop's result")]
    if len(stream.states) > 2 and end in descendants(seen.tape.nodes, stream.states[1], end, {last}):
        return []  # the output reads earlier visits too: the last state is not all that the loop hands on
    if seen.ends is None or seen.ends[0].shape != seen.ends[1].shape:
        return []
    first = seen.ends[0]
    try:
        # What halts the loop by its state would let it run on from the first one: it halts where it did.
        halted = seen.tape.decided.get
        _, without = setting.run(replace={last: lambda _: first.clone()}, like=seen.tape, decide=halted)
    except (RuntimeError, ValueError, IndexError):
        return []
    then = first_float(without)
    if then is None or then.shape != value.shape or not bool(torch.isfinite(value).all()):
        return []
    change = rms(then.float() - value.float()) / max(rms(value), 1e-30)
    if change >= IDLE:
        return []
    return [finding("idle-loop", seen.loop.where, f"leaving the loop out moves the output by {change:.2g} of itself")]


def beside_at_zero(setting: Setting, seen: Pass) -> list[Finding]:
    """Find weights of the loop that at every visit add exactly nothing to a value beside the stream."""
    nodes, loop = seen.tape.nodes, seen.loop
    uses = {index for chain in loop.uses.values() for index in chain}
    on_stream = {step.node for steps in (seen.stream.steps if seen.stream else ()) for step in steps}
    added = {p for i, node in enumerate(nodes) if node.op in ADDS and i not in on_stream for p in node.parents}
    made = {p: owner(seen.tape, p) for p in added if strip(nodes, p)[0] in uses}
    values = setting.run(keep=frozenset(made), like=seen.tape)[0].values
    live = {name for p, name in made.items() if p not in values or bool(values[p].any())}
    still = sorted(set(made.values()) - live)
    said = "what it adds to a value beside the stream is exactly zero at every visit"
    return [finding("dead-branch", ", ".join(still), said)] if still else []


def restarts(tape: Tape, loops: list[FoundLoop]) -> tuple[int, list[Finding]]:
    """Find weights whose every result is computed several times over: a loop that hands nothing on. Gives how often too.

    Weights that read the state as well as something fixed (a gate over both, keys of one memory) are not among them.
    """
    chained = {key for loop in loops for key in loop.uses}
    repeats: dict[Key, int] = {}
    for key, inputs in _inputs(tape).items():
        if len(key[2]) >= 2 and min(inputs.values()) > 1 and (not loops or key in chained):
            repeats[key] = max(inputs.values())
    most = max(repeats.values(), default=0)
    if not repeats or (most < 3 and not loops and len(repeats) == 1):  # one matrix read twice is a shared projection
        return 1, []
    names = [tape.names[key][0].rpartition(".")[0] or tape.names[key][0] for key in repeats]
    where = ", ".join(list(dict.fromkeys(names))[:3])
    return most, [finding("restarts", where, f"the same weights read the same value {most} times in one pass")]


def _inputs(tape: Tape) -> dict[Key, dict[tuple[int, ...], int]]:
    """Say how often each parameter is used on the same values."""
    same = _same_values(tape)
    found: dict[Key, dict[tuple[int, ...], int]] = defaultdict(lambda: defaultdict(int))
    call = -1
    for node in tape.nodes:
        second = node.call == call  # another result of one call
        if node.params and node.data and node.op not in LOOKUPS and not second:
            data = tuple(same[p] for p in node.parents if tape.nodes[p].data)
            for key in node.params:
                found[key][data] += 1
        call = node.call
    return found


_RANDOM = re.compile("rand|dropout|normal|bernoulli|multinomial|poisson|exponential")


def _same_values(tape: Tape) -> list[int]:
    """Give for each node the first that computed the same from the same; what is drawn or unknown is like nothing else."""
    first: dict[tuple[Any, ...], int] = {}
    same: list[int] = []
    begun: dict[int, int] = {}  # the first node of each call: its results are told apart by their place
    for index, node in enumerate(tape.nodes):
        told, place = index, index - begun.setdefault(node.call, index)
        known = node.parents and not any(word[:1] == ("constant",) and not word[-1] for word in _tuples(node.args))
        if known and node.op != "opaque" and not _RANDOM.search(node.op):
            read = tuple(same[p] for p in node.parents)
            spelt = (node.op, place, read, node.params, _firsts(node.args, same), node.shape)
            told = first.setdefault(spelt, index)
        same.append(told)
    return same


def _firsts(args: tuple[Any, ...], same: list[int]) -> tuple[Any, ...]:
    """Name in the arguments, lists of tensors too, the first node that computed each."""
    return tuple(
        ("node", same[word[1]]) if is_node(word) else _firsts(word, same) if isinstance(word, tuple) else word
        for word in args
    )


def _tuples(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    for word in args:
        if isinstance(word, tuple):
            yield word
            yield from _tuples(word)


@dataclass(frozen=True)
class Modes:
    """N and gain in training and in evaluation; what acts in one of them only."""

    training: int
    evaluation: int
    gain: float | None
    acts: tuple[str, ...]


def modes(setting: Setting, seen: Pass) -> tuple[Modes | None, list[Finding]]:
    """Run the model once in the other mode and compare: visits, the stream's growth, BatchNorm inside the loop."""
    model = setting.model
    mode = model.training
    model.train(not mode)
    try:
        other = anew(setting, seen, seen.loop.visits)
        drawn = _drawn(setting)
    except Exception:  # some models cannot run in training mode on this batch
        return None, []
    finally:
        model.train(mode)
    drawn = drawn if _drawn(setting) <= {seen.loop.visits} else set()  # evaluation draws them as well
    told, seen = (seen, other) if mode else (other, seen)
    norms = tuple(_batch_norms(model, seen.loop, seen.tape))
    gain = told.growth.gain if told.growth else None
    both = Modes(told.loop.visits, seen.loop.visits, gain, norms)
    own = seen.growth.gain if seen.growth else None
    reasons = []
    if told.loop.visits != seen.loop.visits:
        reasons.append(f"training made {told.loop.visits} visits and evaluation {seen.loop.visits}")
    elif not mode and drawn - {told.loop.visits}:
        counts = ", ".join(map(str, sorted(drawn | {told.loop.visits})))
        reasons.append(f"training draws the number of visits ({counts}) and evaluation made {seen.loop.visits}")
    if norms:
        reasons.append(f"BatchNorm inside the loop ({', '.join(norms[:2])}) shares its running statistics over visits")
    if gain and own and max(gain / own, own / gain) > DIFFER:
        reasons.append(f"the stream's gain is {gain:.3g} in training and {own:.3g} in evaluation")
    if not reasons:
        return both, []
    return both, [finding("train-eval-differ", seen.loop.where, "; ".join(reasons))]


def _drawn(setting: Setting) -> set[int]:
    """Return the numbers of visits that two further draws of random numbers make."""
    tapes = [setting.run(seed=seed)[0] for seed in (1, 2)]
    return {loop.visits for tape in tapes for loop in find_loops(setting.model, tape)[:1]}


def _batch_norms(model: nn.Module, loop: FoundLoop, tape: Tape) -> Iterator[str]:
    """Yield the BatchNorm modules that act more than once; without weights, those within the modules of the loop."""
    acts = Counter(key for node in tape.nodes if node.op == "batch_norm" for key in node.params)
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        inside = any(f"{name}.".startswith(f"{top}.") for top in loop.modules)
        if inside if module.weight is None else acts[storage_key(module.weight)] > 1:
            yield name


def halts(setting: Setting, seen: Pass, knob: Knob | None) -> list[Finding]:
    """Find a loop that made fewer visits than the number that sets its most, or than it makes where nothing halts it."""
    loop, most = seen.loop, knob.allows if knob is not None and knob.each == 1 else None
    if knob is not None and most is not None:
        allows = f"{knob.name} = {knob.value} allows {most}"
    else:
        most = _unhalted(setting, seen)
        allows = f"makes {most} where what its code decides stays as at the first"
    if loop.visits >= most:
        return []
    return [finding("halts-early", loop.where, f"the loop made {loop.visits} visits on this batch and {allows}")]


def _unhalted(setting: Setting, seen: Pass) -> int:
    """Return the visits that the loop makes where whatever its code decides by stays as it was at first."""
    before, loop = seen.tape.decided, seen.loop
    if all(value == before[site, 0] for (site, _), value in before.items()):
        return loop.visits

    def as_at_first(place: Place, value: Any) -> Any:
        if place[1] > ENDLESS * len(before):
            raise TooLong
        return before.get((place[0], 0), value)

    try:
        now, _ = setting.run(decide=as_at_first)
    except (RuntimeError, LookupError, ValueError, TypeError, TooLong):  # it may never end
        return loop.visits
    # What only skips a visit now and then is decided at as many of them as before.
    if len(now.decided) <= len(before):
        return loop.visits
    return max(
        found.visits for found in [loop, *find_loops(setting.model, now)] if found.uses.keys() & loop.uses.keys()
    )


def unused_knobs(setting: Setting, loop: FoundLoop | None, knob: Knob | None, factory: Factory | None) -> list[Finding]:
    """Find an argument or a value that asks for a number of loops and changes nothing, in either mode."""
    visits = loop.visits if loop else 1
    for one in [*candidates(setting.model), *of_factory(factory, setting.model)]:
        outside = one.kind == "factory"  # by the name of what is inside the model it may be another
        known = knob is not None and one.last == knob.last and (knob.kind == one.kind or not outside)
        if known or not _means_loops(one, visits) or (one.kind != "kwarg" and (one.value is None or one.value < 2)):
            continue
        # A value that equals the visits may have been read at construction: then the model is built with another.
        if not acts(setting, one, rebuilt=one.kind != "kwarg" and not outside and one.value == visits):
            asked = "" if one.value is None else f" asks for {one.value} loops and"
            whose, made = " of the factory" if outside else "", f"{visits} visit{'s' * (visits > 1)}"
            said = f"{one.name}{whose}{asked} changes nothing: the model makes {made} at 2, 3 and 5"
            return [finding("knob-without-effect", one.name, said)]
    return []


def _means_loops(knob: Knob, visits: int) -> bool:
    """Say whether it is named like a number of loops and nothing else; iterations in a config are those of a training.

    An argument of forward that asks for a number of steps is there to be read, and so is one of the factory, whatever it
    is called, that asks for as many as the visits are.
    """
    name, outside = knob.last.lower(), knob.kind == "factory"
    if outside and knob.value == visits:
        return not SIZES.search(name) and not APART.search(name)
    asks = knob.kind == "kwarg" and STEPS.match(name)
    return bool(PLAIN.match(name) or asks) and not ("iter" in name and (outside or knob.kind == "config"))
