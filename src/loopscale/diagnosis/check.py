"""`check_parameterization`: does this model, under this rule, stay the same as loops are added? For your own model too."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.endnode import at_two
from loopscale.diagnosis.knob import Knob, find_knob
from loopscale.diagnosis.loops import find_loops
from loopscale.diagnosis.onestep import MakeLoss, MakeOptimizer, train_a_little
from loopscale.diagnosis.setting import Setting
from loopscale.errors import UserError
from loopscale.parameterization import CheckRow, Depth, ParameterizationCheck, Role, Rule, get_rule
from loopscale.probe.batch import prepare
from loopscale.probe.passes import record
from loopscale.probe.untouched import untouched, unwrap

Factory = Callable[..., nn.Module]


def check_parameterization(
    model_or_factory: nn.Module | Factory,
    rule: str | Rule = "looped",
    loops: Sequence[int] = (1, 2, 4, 8),
    batch: Any = None,
    steps: int = 10,
    lr: float = 2.0**-10,
    optimizer: MakeOptimizer | None = None,
    loss: MakeLoss | None = None,
) -> ParameterizationCheck:
    """Measure slopes over log N of the stream's RMS and of its change by training, on copies.

    `model_or_factory`: a function of `loops` that builds the model, or a module whose loops can be set (an argument of
    forward, an attribute, a config value; the handle of an attached model is moved along). `rule` gives the factor on the
    learning rate at each N. `optimizer` makes the user's own from a model; without it, Adam at rate `lr`. `batch` is what
    the model is called with; `loss` makes a scalar from its output, labels in a closure:
    `loss=lambda logits: F.cross_entropy(logits, labels)`.

    Raises `UserError` for fewer than two numbers of loops, for a factory that does not build modules, and for a model
    that is not looped or whose loops cannot be set.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> check_parameterization(LoopedTransformer(ModelConfig(vocab_size=17, width=32)), steps=2).passed
    True
    """
    chosen, counts = get_rule(rule), sorted(set(loops))
    if len(counts) < 2 or counts[0] < 1:
        raise UserError(
            f"loops must be at least two different numbers of at least 1, got {list(loops)}: try (1, 2, 4, 8)"
        )
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    rows = []
    for count, there, end in _at_each(model_or_factory, counts, batch):
        rate = lr * chosen.for_role(Role.HIDDEN, Depth(count, 1)).lr.value
        rows.append(_row(there, end, count, steps, optimizer or partial(_adam, rate), loss))
    return ParameterizationCheck.of(chosen.name, steps, rows)


def _adam(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)


def _at_each(source: nn.Module | Factory, counts: Sequence[int], batch: Any) -> Iterator[tuple[int, Setting, int]]:
    """Give a copy of the model at each number of loops, and the node of the stream after its last visit."""
    if not isinstance(source, nn.Module):
        for count in counts:
            model, longer = _build(source, count), _build(source, 2)
            with untouched(longer):
                used = prepare(longer, batch)
                two = at_two(longer, used, {})
            with untouched(model, grads=True):
                yield count, Setting(model, used), two.end(model, used, {}, count)
        return
    model = copy.deepcopy(unwrap(source))
    with untouched(model, grads=True):
        used = prepare(model, batch)
        tape, _ = record(model, used)
        loop = next(iter(find_loops(model, tape)), None)
        knob = find_knob(model, used, loop)
        if knob is None:
            raise UserError("the loops of this model cannot be set: pass a function of loops that builds it")
        with knob.at(2) as extra:
            two = at_two(model, used, extra, _advice(knob))
        for count in counts:
            with knob.at(
                count
            ) as extra:  # the copy is made while the knob is set: an attribute is copied with its module
                copied = copy.deepcopy(model)
                yield count, Setting(copied, used, extra), two.end(copied, used, extra, count)


def _advice(knob: Knob) -> str:
    if knob.each == 1:
        return f"{knob.name!r} does not set them alone, pass a function of loops that builds the model"
    return f"one more of {knob.name!r} is {knob.each} more visits: if a `for` stands around a `Loop`, call it once"


def _build(factory: Factory, count: int) -> nn.Module:
    try:
        named = "loops" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        named = False
    made = factory(loops=count) if named else factory(count)
    if not isinstance(made, nn.Module):
        raise UserError(f"the factory returned a {type(made).__name__}: it must build a torch.nn.Module from loops")
    return unwrap(made)


def _row(there: Setting, end: int, count: int, steps: int, optimizer: MakeOptimizer, loss: MakeLoss | None) -> CheckRow:
    def stream() -> Tensor:
        return there.run(keep=frozenset({end}), stop=end)[0].values[end].float()

    before = stream()
    own = optimizer(there.model)
    train_a_little(there, 1, optimizer=lambda _: own, loss_of=loss)
    first = rms(stream() - before)
    if steps > 1:
        train_a_little(there, steps - 1, optimizer=lambda _: own, loss_of=loss)
    return CheckRow(count, rms(before), first, rms(stream() - before))
