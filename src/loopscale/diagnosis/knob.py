"""What sets the number of loops: an argument of forward, an attribute or a config value; found by trying."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopscale.diagnosis.batch import LOOP_WORDS
from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.passes import record
from loopscale.errors import UserError, nearest

_SIZES = re.compile(
    r"dim|size|width|head|feature|channel|kernel|stride|vocab|embed|token|_id$|group|length|hidden$|seed"
)
# Each trial costs a forward pass.
_MOST, _SECONDS = 12, 10.0


@dataclass(frozen=True)
class Knob:
    """`kind` is kwarg, attribute or config; `name` as the user would write it."""

    kind: str
    name: str
    owner: Any = None

    @contextmanager
    def at(self, loops: int) -> Iterator[dict[str, Any]]:
        """Give the extra arguments of forward for this many loops; an attribute is put back afterwards."""
        if self.kind == "kwarg":
            yield {self.name: loops}
            return
        last = self.name.rpartition(".")[2]
        store = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        before = store[last]
        store[last] = loops
        try:
            yield {}
        finally:
            store[last] = before


def find_knob(model: nn.Module, batch: Any, loop: FoundLoop | None, named: str | None = None) -> Knob | None:
    """The first candidate that changes the number of visits to what it is set to; None when there is none.

    Raises `UserError` when a knob is named that the model does not have or that does not set the loops.
    """
    visits = loop.visits if loop else 1
    known = [*candidates(model), *_equal(model, visits)][:_MOST]
    if named is not None:
        chosen = [knob for knob in known if knob.name == named] or [knob for knob in _all(model) if knob.name == named]
        if not chosen:
            raise UserError(
                f"the model has no argument, attribute or config value {named!r}: "
                f"{nearest(named, [knob.name for knob in known])}"
            )
        known = chosen
    begun = time.perf_counter()
    for knob in known:
        if named is None and time.perf_counter() - begun > _SECONDS:
            return None
        if works(model, batch, knob, visits + 1):
            return knob
    if named is not None:
        raise UserError(f"{named!r} does not set the number of loops: setting it to {visits + 1} changed nothing")
    return None


def _equal(model: nn.Module, visits: int) -> list[Knob]:
    """Attributes and config values that happen to equal the number of visits, whatever their name, sizes excepted."""
    if visits < 2:
        return []
    found = []
    for knob in _all(model):
        name = knob.name.rpartition(".")[2]
        if knob.kind != "kwarg" and not _SIZES.search(name) and not LOOP_WORDS.search(name):
            store = knob.owner if isinstance(knob.owner, dict) else vars(knob.owner)
            if store[name] == visits:
                found.append(knob)
    return found


def works(model: nn.Module, batch: Any, knob: Knob, loops: int) -> bool:
    """Whether setting the knob gives this many visits."""
    try:
        with knob.at(loops) as extra:
            tape, _ = record(model, batch, extra)
            return any(found.visits == loops for found in find_loops(model, tape)[:2])
    except Exception:  # a wrong guess may break the model in any way
        return False


def candidates(model: nn.Module) -> Iterator[Knob]:
    """Arguments, attributes and config values that are named like a number of loops, in this order."""
    return (knob for knob in _all(model) if LOOP_WORDS.search(knob.name.rpartition(".")[2]))


def _all(model: nn.Module) -> Iterator[Knob]:
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            demanded = parameter.default is parameter.empty and LOOP_WORDS.search(name)
            if parameter.default is None or type(parameter.default) is int or demanded:
                yield Knob("kwarg", name)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if type(value) is int and not name.startswith("_"):
                yield Knob("attribute", f"{path}.{name}".strip("."), module)
            inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
            if name in ("config", "cfg", "args", "hparams", "params") and inner is not None and id(inner) not in seen:
                seen.add(id(inner))
                for key, number in list(inner.items()):
                    if type(number) is int:
                        yield Knob("config", f"{path}.{name}.{key}".strip("."), inner)
