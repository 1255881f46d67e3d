"""What sets the number of loops: an argument of forward or of the factory, an attribute, a config value; found by trying.

An attached model has a second one, its handle's `set_loops`, which is moved along: eps has to follow N.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.setting import Setting
from loopscale.diagnosis.stated import attachment_in, scaled_for
from loopscale.errors import UserError, nearest
from loopscale.probe.batch import LOOP_WORDS, first_float, small
from loopscale.probe.untouched import untouched, unwrap
from loopscale.speaker import handle_of

SIZES = re.compile(
    r"dim|size|width|head|feature|channel|kernel|stride|vocab|embed|token|_id$|group|length|hidden$|seed"
)
# Each trial costs a forward pass at few loops; of a large model fewer are tried.
_MOST, _MOST_LARGE = 12, 4
_CONFIGS = ("config", "cfg", "args", "hparams", "params", "conf", "opt")


@dataclass(frozen=True)
class Knob:
    """`kind` is kwarg, attribute, config or handle; `name` as the user would write it; visits = `each` * value + `more`.

    `handle`: that of `attach`, moved along with the loops.
    """

    kind: str
    name: str
    owner: Any = None
    each: int = 1
    more: int = 0
    handle: Any = None

    @property
    def value(self) -> int | None:
        """What it is set to; None for an argument of forward."""
        if self.kind == "handle":
            return int(self.owner.loops)
        store = self._store()
        return None if store is None else int(store[self.last])

    @property
    def last(self) -> str:
        """The name without the modules that hold it."""
        return self.name.rpartition(".")[2]

    @property
    def allows(self) -> int | None:
        """The visits that its value gives, where nothing ends the loop before; None for an argument of forward."""
        return None if self.value is None else self.each * self.value + self.more

    def nearest(self, loops: int) -> int:
        """Return the number of visits closest to `loops` that it can give; at least that of the value 1."""
        return self.each * max(1, round((loops - self.more) / self.each)) + self.more

    @contextmanager
    def at(self, loops: int, setting: Setting) -> Iterator[Setting]:
        """Give the setting at the nearest number of loops; an attribute is put back afterwards."""
        with self.set(max(1, round((loops - self.more) / self.each)), setting) as there:
            yield there

    @contextmanager
    def set(self, value: int, setting: Setting) -> Iterator[Setting]:
        """Give the setting with it set to a value, whatever number of visits comes of it."""
        with scaled_for(self.handle, max(1, self.each * value + self.more)), self._written(value, setting) as there:
            yield there

    @contextmanager
    def _written(self, value: int, setting: Setting) -> Iterator[Setting]:
        if self.kind == "handle":
            with scaled_for(self.owner, value):
                yield setting
            return
        store = self._store()
        if store is None:
            yield replace(setting, extra={**setting.extra, self.name: value})
            return
        before = store[self.last]
        store[self.last] = value
        try:
            yield setting
        finally:
            store[self.last] = before

    def _store(self) -> dict[str, Any] | None:
        if self.kind == "kwarg":
            return None
        return self.owner if isinstance(self.owner, dict) else vars(self.owner)


@dataclass(frozen=True)
class Built(Knob):
    """An argument of the function that builds the model as the knob: `owner` builds one from a value of it.

    `own`: the value that the model at hand was built with. Models are built at torch's seed 0, so that all begin alike.
    """

    own: int | None = None

    @property
    def value(self) -> int | None:
        """What the model at hand was built with."""
        return self.own

    @contextmanager
    def _written(self, value: int, setting: Setting) -> Iterator[Setting]:
        if value == self.own:
            yield setting
            return
        model = self.build(value)
        with untouched(model, grads=True):
            model.train(setting.model.training)
            yield replace(setting, model=model)

    def build(self, value: int) -> nn.Module:
        """Call the function; raises `UserError` when it makes no module."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.owner(value)
        made = made[0] if isinstance(made, tuple) and made else made
        if not isinstance(made, nn.Module):
            raise UserError(
                f"the factory returned a {type(made).__name__}: it must build a torch.nn.Module from {self.name}"
            )
        return unwrap(made)


Factory = Callable[..., Any]


def of_factory(factory: Factory | None, model: nn.Module) -> list[Knob]:
    """Return the whole numbers that a model's factory takes by default, those named like a number of loops first.

    None of a large model, which would be built again and again, nor of one that was attached since.
    """
    if factory is None or handle_of(model) is not None or not small(model):
        return []
    try:
        taken = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [p for p in taken if type(p.default) is int and p.default > 0 and p.kind != p.POSITIONAL_ONLY]
    named.sort(key=lambda p: (not LOOP_WORDS.search(p.name), bool(SIZES.search(p.name))))
    found: list[Knob] = [Built("factory", p.name, partial(_by_name, factory, p.name), own=p.default) for p in named]
    return found[:_MOST]


def _by_name(factory: Factory, name: str, value: int) -> Any:
    return factory(**{name: value})


def find_knob(
    setting: Setting, loop: FoundLoop | None, named: str | None = None, factory: Factory | None = None
) -> Knob | None:
    """Return the first candidate that changes the number of visits to what it is set to; None when there is none.

    Raises `UserError` when a knob is named that the model does not have or that does not set the loops.
    """
    model, batch = setting.model, setting.batch
    visits = loop.visits if loop else 1
    equal = _unnamed(model, lambda value: value == visits) if visits > 1 else []
    known = [*_of_handle(model), *candidates(model), *_given(model, batch), *equal][
        : _MOST if small(model) else _MOST_LARGE
    ]
    limits: list[Knob] = []
    built = of_factory(factory, model)
    if loop is not None and small(model):
        # What exceeds the visits sets them only as a most, which a value above it shows; what divides them, in rounds.
        around = {name.rpartition(".")[0] for name in loop.modules} | {""}
        most = _unnamed(model, lambda value: value > visits)
        most = [knob for knob in most if knob.kind == "attribute" and knob.name.rpartition(".")[0] in around]
        rounds = _unnamed(model, lambda value: 1 < value < visits and visits % value == 0)
        limits = [*most[:_MOST_LARGE], *rounds[:_MOST_LARGE]]
    if named is not None:
        every = [*known, *_all(model), *_given(model, batch), *built]
        limits, built, known = [], [], [knob for knob in every if knob.name == named][:1]
        if not known:
            raise UserError(
                f"the model has no argument, attribute or config value {named!r}: "
                f"{nearest(named, [knob.name for knob in every])}"
            )
    ways = ((_direct, known), (_in_proportion, [*known, *limits]), (_direct, built), (_in_proportion, built))
    for measure, tried in ways:
        for knob in tried:
            found = measure(setting, knob, visits)
            if found is not None:
                return replace(found, handle=attachment_in(model))
    if named is not None:
        raise UserError(
            f"{named!r} does not set the number of loops: setting it to {2 if visits != 2 else 3} changed nothing"
        )
    return None


def _direct(setting: Setting, knob: Knob, visits: int) -> Knob | None:
    """Try the knob as one that gives as many visits as it is set to: at few, which is cheap and which embeddings allow."""
    value = 2 if visits != 2 else 3
    return knob if value in _visits(setting, knob, value) else None


def _in_proportion(setting: Setting, knob: Knob, visits: int) -> Knob | None:
    """Try the knob as one that gives several visits for one more: cycles within cycles."""
    value = knob.value
    if value is None or visits < 2:
        return None
    above = [visits, _most(setting, knob, value + 1)]
    if above[1] == visits and value <= 4:
        return None
    above.append(_most(setting, knob, value + 2))
    if above[0] == above[1] == above[2]:  # a most that is not reached: tried at few
        value, above = 2, [_most(setting, knob, few) for few in (2, 3, 4)]
    each = above[1] - above[0]
    if each < 1 or above[2] - above[1] != each:
        return None
    return replace(knob, each=each, more=above[0] - each * value)


def _most(setting: Setting, knob: Knob, value: int) -> int:
    return max(_visits(setting, knob, value), default=0)


def _visits(setting: Setting, knob: Knob, value: int) -> list[int]:
    try:
        with knob.set(value, setting) as there:
            return [found.visits for found in find_loops(there.model, there.run()[0])[:2]]
    except Exception:  # a wrong guess may break the model in any way
        return []


def acts(setting: Setting, one: Knob, rebuilt: bool = False) -> bool:
    """Say whether any of three values makes another pass than the others, in training or in evaluation.

    `rebuilt`: a value that was read at construction, of a model that is built from its config; True where it is not, or
    where a value breaks the model.
    """
    mode = setting.model.training
    try:
        for training in (mode, not mode):
            passes = set()
            for value in (2, 3, 5):
                with one.set(value, setting) as there:
                    model = _rebuilt(there.model, one) if rebuilt else there.model
                    model.train(training)
                    tape, output = replace(there, model=model).run()
                    # What makes the pass longer, or the output another, does act, on something else.
                    size = first_float(output)
                    told = None if size is None else float(size.detach().double().abs().sum())
                    passes.add((len(tape.nodes), told, *(loop.visits for loop in find_loops(model, tape))))
                if len(passes) > 1:
                    return True
    except Exception:  # a wrong guess may break the model in any way
        return True
    finally:
        setting.model.train(mode)
    return False


def _rebuilt(model: nn.Module, one: Knob) -> nn.Module:
    """Build the model again from the config that holds the value; raises `LookupError` where it is not made of one."""
    config = vars(model).get(one.name.partition(".")[0])
    if one.kind != "config" or config is None or not small(model):
        raise LookupError("not built from a config")
    made: nn.Module = type(model)(copy.deepcopy(config))
    return made


def _of_handle(model: nn.Module) -> list[Knob]:
    """Return the handle that `convert` left: it sets the loops of a model that had none."""
    handle = handle_of(model)
    return [Knob("handle", "handle.set_loops", handle)] if handle is not None and handle.kind == "converted" else []


def _unnamed(model: nn.Module, fits: Callable[[int], bool]) -> list[Knob]:
    """Give attributes and config values that fit, named like neither a number of loops nor a size."""
    named = [(knob, knob.value, knob.last) for knob in _all(model)]
    return [
        knob
        for knob, value, name in named
        if value is not None and fits(value) and not SIZES.search(name) and not LOOP_WORDS.search(name)
    ]


def _given(model: nn.Module, batch: Any) -> list[Knob]:
    """Return whole numbers that the batch itself gives to forward, by name or place, however they are called."""
    items: Iterable[tuple[str, Any]] = batch.items() if isinstance(batch, Mapping) else ()
    if isinstance(batch, (tuple, list)):
        items = zip(inspect.signature(model.forward).parameters, batch, strict=False)
    return [Knob("kwarg", name) for name, value in items if type(value) is int]


def candidates(model: nn.Module) -> Iterator[Knob]:
    """Return arguments, attributes and config values that are named like a number of loops, in this order."""
    return (knob for knob in _all(model) if LOOP_WORDS.search(knob.last))


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
            if name in _CONFIGS or (not name.startswith("_") and _holds_numbers(value)):
                yield from _inside(f"{path}.{name}".strip("."), value, seen, 3)


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, (dict, SimpleNamespace)) or hasattr(value, "__dataclass_fields__")


def _inside(path: str, value: Any, seen: set[int], depth: int) -> Iterator[Knob]:
    """Return the numbers in a config object or dict, and in the configs within it."""
    inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if inner is None or id(inner) in seen or not depth:
        return
    seen.add(id(inner))
    for key, item in list(inner.items()):
        if not (isinstance(key, str) and key.isidentifier()):
            continue  # a table of something else, as by the names of modules
        if key == "loopscale":
            continue  # what is stored with a checkpoint: its handle sets the loops
        if type(item) is int:
            yield Knob("config", f"{path}.{key}", inner)
        elif _holds_numbers(item):
            yield from _inside(f"{path}.{key}", item, seen, depth - 1)
