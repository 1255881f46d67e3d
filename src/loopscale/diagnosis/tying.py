"""Is it tied? Parameters meant to be shared that are not: copies of equal value, or private twins of shared ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from loopscale.diagnosis.diagnosis import Finding, finding
from loopscale.diagnosis.initial import weights
from loopscale.diagnosis.knob import acts, candidates
from loopscale.diagnosis.loops import FoundLoop
from loopscale.diagnosis.setting import Setting
from loopscale.probe.tape import Key, Tape, storage_key
from loopscale.probe.walks import ancestors

# Values this alike from one row or column to the next are written by a formula; random ones have about none.
SMOOTH = 0.5


def untied(setting: Setting, tape: Tape, loops: list[FoundLoop]) -> Iterator[Finding]:
    """Give at most one finding: equal copies, then twins of shared parameters, then loops declared but not made.

    Only what was meant to be shared counts, by evidence: random values that are equal, or sharing set up parameter by
    parameter that leaves some out. Private adapters, attention, first and last layers, and matrices that every layer
    initialises by one formula are the design.
    """
    yield from list(_found(setting, tape, loops))[:1]


def _found(setting: Setting, tape: Tape, loops: list[FoundLoop]) -> Iterator[Finding]:
    model = setting.model
    copies = _equal_copies(setting, tape)
    if copies:
        names = "; ".join(", ".join(f"`{name}`" for name in equal[:3]) for equal in copies[:3])
        said = f"{names} hold equal values in separate memory ({len(copies)} such sets): they drift apart in training"
        first = [name for equal in copies[:3] for name in equal[: 4 if len(copies) == 1 else 2]]
        yield finding("untied", ", ".join(first), said, cause="a copy was made where the same parameter was meant")
    twins = _twins(model, tape, loops)
    if twins:
        said = f"{len(twins)} matrices differ from visit to visit beside matrices of the same layers that are shared"
        cause = "sharing was set up for a part of the layer only"
        yield finding("untied", ", ".join(twins[:4]), said, "warning", cause=cause)
    if not loops:
        declared = _declared(setting)
        if declared:
            said = f"`{declared[0]}` asks for {declared[1]} loops, and no parameter acts twice in a forward pass"
            yield finding("untied", declared[0], said, cause="each visit has layers of its own")


def _equal_copies(setting: Setting, tape: Tape) -> list[list[str]]:
    """Return sets of random matrices, used in the pass on one stream, of equal value in separate memory.

    A frozen copy, as a teacher has, was never meant to be shared: it is not trained along.
    """
    used: dict[Key, list[int]] = defaultdict(list)
    for index, node in enumerate(tape.nodes):
        for key in node.params:
            used[key].append(index)
    sets: dict[tuple[object, ...], dict[Key, tuple[str, Tensor]]] = defaultdict(dict)
    for key, name, parameter in weights(setting.model):
        if parameter.ndim < 2 or parameter.numel() < 4 or key not in used or name.partition("[")[0] in setting.frozen:
            continue
        value = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
        print_ = (
            tuple(value.shape),
            value.dtype,
            float(value.flatten()[:4096].double().sum()),
            float(value.flatten()[-1]),
        )
        sets[print_].setdefault(key, (name, value))
    found = []
    for members in sets.values():
        (key, (first, value)), *others = members.items()
        if others and not _by_formula(value):
            same = {k: name for k, (name, other) in others if torch.equal(value, other)}
            if same and _meet(tape, [used[key], *(used[k] for k in same)]):
                found.append([first, *same.values()])
    return found


def _meet(tape: Tape, uses: list[list[int]]) -> bool:
    """Say whether one of several parameters acts on what another has made: they do not where each has its own stream."""
    for own in uses:
        before = set().union(*(ancestors(tape.nodes, index, 0) for index in own)) - set(own)
        if any(index in before for other in uses if other is not own for index in other):
            return True
    return False


def _by_formula(value: Tensor) -> bool:
    """Say whether a matrix looks written by a formula: few distinct values, equal rows, or smooth along an axis."""
    part = value.detach().double().flatten(0, -2)[:256, :256]
    if len(set(part.flatten().tolist())) * 2 < part.numel() or not bool(torch.isfinite(part).all()):
        return True
    for rows in (part, part.T):
        if rows.shape[1] > 7:
            before, after = rows[:, :-1].flatten(), rows[:, 1:].flatten()
            spread = float(before.std() * after.std())
            if spread and float(((before - before.mean()) * (after - after.mean())).mean()) / spread > SMOOTH:
                return True
    return False


def _twins(model: nn.Module, tape: Tape, loops: list[FoundLoop]) -> list[str]:
    """Return private matrices of numbered layers whose siblings are one parameter held by several modules.

    Where a layer holds a shared *module* (a bank of experts, one attention for all), the rest is its own on purpose.
    """
    looped = {key for loop in loops for key in loop.uses}
    holders = _holders(model)
    spread: dict[str, set[str]] = defaultdict(set)
    for key in looped:
        for name in holders.get(key, []):
            match = re.match(r"(.*?)\.(\d+)\.", name)
            if match and len(holders[key]) > 1:
                spread[match[1]].add(match[2])
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, names in tape.names.items():
        match = re.match(r"(.*?)\.(\d+)\.(.*)", names[0])
        if match and match[2] in spread.get(match[1], ()) and len(key[2]) >= 2 and len(names) == 1 and min(key[2]) > 32:
            found[match[1], match[3]].append(names[0])
    return [name for names in found.values() if len(names) > 1 for name in names]


def _holders(model: nn.Module) -> dict[Key, list[str]]:
    """Return names of each parameter, one for each module object that holds it."""
    found: dict[Key, list[str]] = defaultdict(list)
    for path, module in model.named_modules():  # each module object once
        for name, parameter in module.named_parameters(recurse=False):
            found[storage_key(parameter)].append(f"{path}.{name}".strip("."))
    return found


def _declared(setting: Setting) -> tuple[str, int] | None:
    """Return a loop count above 1 that nothing reads, in a model with at least so many equal siblings.

    One that says how many of them run is a number of layers.
    """
    model = setting.model
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
    for knob in candidates(model):
        count = knob.value
        if (
            count is not None
            and count > 1
            and any(len(m) % count == 0 and len({type(part) for part in m}) == 1 for m in lists)
        ):
            if not acts(setting, knob):
                return knob.name, count
    return None
