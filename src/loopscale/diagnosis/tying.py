"""Is it tied? Parameters meant to be shared that are not: copies of equal value, or private twins of shared ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from loopscale.diagnosis.diagnosis import Finding
from loopscale.diagnosis.knob import candidates
from loopscale.diagnosis.loops import FoundLoop
from loopscale.probe.tape import Key, Tape, storage_key

_REMEDY = "assign the same module or parameter object at every visit, after any deepcopy, cast or load with assign=True"


def untied(model: nn.Module, tape: Tape, loops: list[FoundLoop]) -> Iterator[Finding]:
    """At most one finding: equal copies, then twins of shared parameters, then loops declared but not made."""
    yield from list(_found(model, tape, loops))[:1]


def _found(model: nn.Module, tape: Tape, loops: list[FoundLoop]) -> Iterator[Finding]:
    used = {key for node in tape.nodes for key in node.params}
    copies = _equal_copies(model, used)
    if copies:
        names = ", ".join(f"`{name}`" for name in copies[0][:3])
        yield Finding(
            "untied",
            "error",
            ", ".join(copies[0][:4]),
            f"{names} hold equal values in separate memory ({len(copies)} such sets): they drift apart in training",
            "a copy was made where the same parameter was meant",
            _REMEDY,
        )
    twins = _twins(tape, loops)
    if twins:
        yield Finding(
            "untied",
            "warning",
            ", ".join(twins[:4]),
            f"{len(twins)} matrices differ from visit to visit beside matrices of the same layers that are shared",
            "sharing was set up for a part of the layer only",
            _REMEDY,
        )
    if not loops:
        declared = _declared(model)
        if declared:
            yield Finding(
                "untied",
                "error",
                declared[0],
                f"`{declared[0]}` asks for {declared[1]} loops, and no parameter acts twice in a forward pass",
                "each visit has layers of its own",
                _REMEDY,
            )


def _equal_copies(model: nn.Module, used: set[Key]) -> list[list[str]]:
    """Sets of matrices, used in the pass, of equal value in separate memory; constant matrices do not count."""
    sets: dict[tuple[object, ...], dict[object, tuple[str, Tensor]]] = defaultdict(dict)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2 or parameter.numel() < 4 or storage_key(parameter) not in used:
            continue
        value = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
        print_ = (
            tuple(value.shape),
            value.dtype,
            float(value.flatten()[:4096].double().sum()),
            float(value.flatten()[-1]),
        )
        sets[print_].setdefault(storage_key(parameter), (name, value))
    found = []
    for members in sets.values():
        (first, value), *others = members.values()
        if others and bool((value != value.flatten()[0]).any()):
            same = [name for name, other in others if torch.equal(value, other)]
            if same:
                found.append([first, *same])
    return found


def _twins(tape: Tape, loops: list[FoundLoop]) -> list[str]:
    """Private matrices whose siblings in the same numbered layers are shared by storage."""
    shared = {name for loop in loops for key in loop.uses for name in tape.names.get(key, [])}
    spread: dict[str, set[str]] = defaultdict(set)
    for name in shared:
        match = re.match(r"(.*?)\.(\d+)\.", name)
        if match:
            spread[match[1]].add(match[2])
    several = {
        stem
        for stem in spread
        if any(
            len({n.split(".")[stem.count(".") + 1] for n in names if n.startswith(stem + ".")}) > 1
            for key, names in tape.names.items()
            if names[0] in shared
        )
    }
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, names in tape.names.items():
        match = re.match(r"(.*?)\.(\d+)\.(.*)", names[0])
        if match and match[1] in several and len(key[2]) >= 2 and len(names) == 1 and min(key[2]) > 32:
            found[match[1], match[3]].append(names[0])
    return [name for names in found.values() if len(names) > 1 for name in names]


def _declared(model: nn.Module) -> tuple[str, int] | None:
    """A loop count above 1 in an attribute or config, in a model with at least so many equal siblings."""
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
    for knob in candidates(model):
        if knob.kind == "kwarg":
            continue
        store = knob.owner if isinstance(knob.owner, dict) else vars(knob.owner)
        count = store[knob.name.rpartition(".")[2]]
        if count > 1 and any(len(m) % count == 0 and len({type(part) for part in m}) == 1 for m in lists):
            return knob.name, count
    return None
