"""`check_parameterization`: does this model, under this rule, stay the same as loops are added? For your own model too."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.knob import Built, Factory, Knob, find_knob
from loopscale.diagnosis.laststate import FACTORY, at_two
from loopscale.diagnosis.loops import find_loops
from loopscale.diagnosis.onestep import MakeLoss, MakeOptimizer, adam, train_a_little, yours
from loopscale.diagnosis.setting import Setting, at_each
from loopscale.errors import UserError
from loopscale.parameterization import CheckRow, Depth, ParameterizationCheck, Role, Rule, get_rule
from loopscale.parameterization.flat import counts_to_check
from loopscale.probe.batch import prepare
from loopscale.probe.untouched import untouched, unwrap


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
    chosen, counts = get_rule(rule), counts_to_check(loops, steps)
    if isinstance(model_or_factory, nn.Module):
        built, model = None, copy.deepcopy(unwrap(model_or_factory))
    else:
        built = _built(model_or_factory)
        model = built.build(2)
    rows = []
    with untouched(model, grads=True):
        setting = Setting(model, prepare(model, batch))
        knob, advice = (built, FACTORY) if built else _knob(setting)
        with knob.at(2, setting) as twice:
            two = at_two(twice, advice)
        for count, there in at_each(setting, knob, counts):
            rate = lr * chosen.for_role(Role.HIDDEN, Depth(count, 1)).lr.value
            end = two.end(there, count)
            rows.append(_row(there if built else there.copied(), end, count, steps, yours(optimizer, adam(rate)), loss))
    return ParameterizationCheck.of(chosen.name, steps, rows)


def _built(factory: Factory) -> Built:
    """Give a function of the number of loops, by name or by place, as what sets them."""
    try:
        named = "loops" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        named = False
    return Built("factory", "loops", (lambda loops: factory(loops=loops)) if named else factory)


def _knob(setting: Setting) -> tuple[Knob, str]:
    """Give what sets the loops of a model, and what to do where it does not set them alone."""
    loops = find_loops(setting.model, setting.run()[0])
    knob = find_knob(setting, next(iter(loops), None))
    if knob is None:
        raise UserError("the loops of this model cannot be set: pass a function of loops that builds it")
    if knob.each == 1:
        return knob, f"{knob.name!r} does not set them alone, pass a function of loops that builds the model"
    more = f"one more of {knob.name!r} is {knob.each} more visits"
    return knob, f"{more}: if a `for` stands around a `Loop`, call it once"


def _row(there: Setting, end: int, count: int, steps: int, optimizer: MakeOptimizer, loss: MakeLoss | None) -> CheckRow:
    """Give the size of the stream after the last visit, and how far one and all steps of training move it."""
    streams: list[Tensor] = []

    def read(step: int, _output: Any) -> None:
        if step in (0, 1, steps):
            streams.append(there.run(keep=frozenset({end}), stop=end)[0].values[end].float())

    train_a_little(there, steps, optimizer, loss, read)
    before = streams[0]
    return CheckRow(count, rms(before), rms(streams[1] - before), rms(streams[-1] - before))
