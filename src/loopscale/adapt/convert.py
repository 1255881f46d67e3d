"""convert: layers start..stop of an existing model become a looped core, in place, N being a run-time knob."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from loopscale.adapt.attach import _attachable, _find
from loopscale.adapt.conversion import Conversion, Steps
from loopscale.adapt.core import Core, enlist
from loopscale.adapt.find import Branch, by_convention
from loopscale.adapt.handle import PLACE, compare
from loopscale.adapt.hook import BranchHook, drop_compiled, install
from loopscale.adapt.stacking import DepthRuleWarning, factor_in_modules
from loopscale.adapt.tie import Undo, tie
from loopscale.adapt.verify import evaluating, sentences, verify
from loopscale.errors import UserError, nearest
from loopscale.parameterization import Depth, Rule, get_rule
from loopscale.parameterization.depth import check_strength
from loopscale.probe.batch import call_model, first_float, prepare

OLDEST_TRANSFORMERS = (4, 57)


def convert(
    model: nn.Module,
    start: int,
    stop: int,
    loops: int,
    *,
    layers: int | None = None,
    tie: Literal["first", "average"] = "first",
    steps: Steps = "damped",
    strength: float = 0.1,
    rule: str | Rule = "looped",
    base_layers: int | None = None,
    stack: str | None = None,
    batch: Any = None,
    check: bool = True,
) -> Conversion:
    """Loop the layers start..stop-1 of `model` in place: prelude / core / coda, the core visited `loops` times.

    steps="damped" (for a pretrained model): the first visit is as it was, each of the N - 1 others is mixed in,
    x <- x + s (stack(x) - x) with s = strength / (N - 1) under rule "looped"; at strength 0 (or N = 1) the model is bit
    by bit the original, and its loss moves away continuously. steps="even" (to train from the start): every visit
    scales each branch by the rule, eps = strength / (N sqrt(m_L)), layers outside the core by that of N = 1.

    `layers`: L unique layers of the core, a divisor of stop - start (default: all of them); layer i then stands for
    start + i, start + i + L, ... and `tie` says whether with the "first" one's weights or their "average".
    `base_layers` defaults to L. `stack` names the list of layers where there are several (encoder and decoder). A KV
    cache gets a slot for each visit.

    Raises `UserError`, the model untouched: a range out of bounds, layers of different shapes to be tied, a model
    attached or converted already, steps="even" on one that scales its branches itself, transformers older than 4.57, a
    check that fails.

    >>> block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    >>> model = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
    >>> with convert(model, 1, 3, loops=5, strength=0.1) as handle:
    ...     round(handle.step(5), 3)
    0.025

    Source: damped steps are relaxed fixed-point iteration; the exponents of the step are arXiv:2606.18524's.
    """
    _attachable(model)
    _new_enough(model)
    row = get_rule(rule)
    if steps not in ("damped", "even"):
        raise UserError(f"unknown steps {steps!r}: {nearest(str(steps), ('damped', 'even'))}")
    if row.norm == "post" and steps == "damped":
        raise UserError(f"rule {row.name!r} has no damped steps: use 'looped'")
    refusal = factor_in_modules(model) if steps == "even" else None
    if refusal is not None:
        raise UserError(refusal)
    name, members = _stack(model, stack)
    unique = _range(start, stop, len(members), name) if layers is None else layers
    _range(start, stop, len(members), name)
    handle = _make(model, name, members, (start, stop, unique, tie), (steps, row, strength, base_layers, loops))
    try:
        _set_up(handle, loops, batch, check)
    except BaseException:
        handle.detach()
        raise
    for text in handle.warnings:
        warnings.warn(text, DepthRuleWarning, stacklevel=2)
    return handle


def _make(model: nn.Module, name: str, members: nn.ModuleList, span: Any, scaling: Any) -> Conversion:
    (start, stop, unique, how), (steps, row, strength, base_layers, loops) = span, scaling
    Depth(loops, unique)
    check_strength(strength)
    undo = Undo()
    tie(model, members, start, stop, unique, how, undo)
    core = Core(list(members)[start : start + unique], start, len(members))
    handle = Conversion(model, core, steps, row, strength, unique if base_layers is None else base_layers)
    handle.stack, handle.undo = name, undo
    handle.tied = "layers as they were" if unique == stop - start else f"{stop - start} layers tied to {unique} ({how})"
    return handle


def _set_up(handle: Conversion, loops: int, batch: Any, check: bool) -> None:
    model, core = handle.model, handle.core
    stored = getattr(getattr(model, "config", None), "loopscale", None)
    if stored is not None:
        handle.undo.steps.insert(0, partial(setattr, model.config, "loopscale", stored))
        compare(stored, handle.record())
    vars(model)[PLACE] = handle
    made = None
    meta = any(p.is_meta for p in model.parameters())
    if check and not meta:
        with evaluating(model):
            made = prepare(model, batch)
    if handle.steps == "even":
        _scale_branches(handle, made)
    enlist(core)
    handle.set_loops(loops)
    if made is not None:
        _check(handle, made)
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        config.loopscale = handle.record()
    drop_compiled()


def _scale_branches(handle: Conversion, made: Any) -> None:
    found, _ = _find(handle.model, None, made)
    inside = tuple(f"{handle.stack}.{handle.core.first + place}." for place in range(handle.depth.layers))
    handle.branches = [Branch(b.name, b.layer, not b.name.startswith(inside)) for b in found]
    if made is not None:
        verdict = verify(handle.model, handle.branches, made)
        post = 2 * len(verdict.post_norm) > verdict.layers
        if not post and handle.rule.norm == "post":
            raise UserError(f"rule {handle.rule.name!r} is for Post-LN models: use a pre-norm rule such as 'looped'")
        if post and handle.rule.norm == "pre":
            handle.warnings.append(
                f"{verdict.post_norm[0]!r} norms the sum (Post-LN): eps does not damp a visit there, use steps='damped'"
            )
    for branch in handle.branches:
        install(handle.model.get_submodule(branch.name), BranchHook(handle.scales, branch.once))


def _check(handle: Conversion, made: Any) -> None:
    """At N = 1 as the model was, at strength 0 too (damped), and each visit happens."""
    core, loops, mix = handle.core, handle.loops, handle.core.mix
    visits = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal visits
        visits += 1

    what = f"the layers {core.first}.. of {handle.stack!r} cannot be looped, does each keep the shape of the stream?"
    with evaluating(handle.model), torch.no_grad(), sentences(what):
        core.loops, core.mix = 1, None
        once = first_float(call_model(handle.model, made))
        core.loops, core.mix = loops, None if mix is None else handle.scales.tensor(0.0)
        hook = core.layers[0].register_forward_hook(count)
        try:
            still = first_float(call_model(handle.model, made))
            core.mix = mix
            moved = first_float(call_model(handle.model, made))
        finally:
            hook.remove()
            core.mix = mix
    assert once is not None and still is not None and moved is not None
    if visits != 2 * loops:
        times = visits // (2 * loops)
        raise UserError(
            f"the model itself runs {handle.stack!r} {times} times in a forward pass: it loops already, attach is for it"
            if times > 1
            else f"the core was visited {visits / 2:g} times instead of {loops}: it cannot be looped"
        )
    if once.shape != moved.shape:
        raise UserError(f"looping turned the output {tuple(once.shape)} into {tuple(moved.shape)}: it cannot be looped")
    if mix is not None and not torch.equal(once.nan_to_num(), still.nan_to_num()):
        raise UserError(
            f"at strength 0 the output {tuple(once.shape)} differs from the original's: the core cannot be damped"
        )
    handle.verified = f"verified: the core is visited {loops} times" + (
        ", at strength 0 the output is the original's bit by bit" if mix is not None else ""
    )


def _new_enough(model: nn.Module) -> None:
    transformers = sys.modules.get("transformers")
    if transformers is None or not hasattr(getattr(model, "config", None), "to_dict"):
        return
    version = str(getattr(transformers, "__version__", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise UserError(
            f"transformers {version} keeps its caches in a way that cannot be looped: pip install -U 'transformers>=4.57'"
        )


def _stack(model: nn.Module, name: str | None) -> tuple[str, nn.ModuleList]:
    """The list of layers: the one named, or the only longest one that is not inside a layer of another."""
    lists = {key: module for key, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    outer = {key: m for key, m in lists.items() if not any(key.startswith(f"{other}.") for other in lists)}
    if name is not None:
        if name not in lists:
            raise UserError(f"the model has no list of layers {name!r}: {nearest(name, lists)}")
        return name, lists[name]
    if not outer:
        raise UserError(f"{type(model).__name__} has no nn.ModuleList of layers: convert loops a part of such a list")
    known = {branch.layer.rpartition(".")[0] for branch in by_convention(model)[0]}
    outer = {key: module for key, module in outer.items() if key in known} or outer
    most = max(len(module) for module in outer.values())
    longest = [key for key, module in outer.items() if len(module) == most]
    if len(longest) > 1:
        raise UserError(f"the model has several stacks of layers, {', '.join(longest)}: choose one with stack=")
    return longest[0], outer[longest[0]]


def _range(start: int, stop: int, total: int, name: str) -> int:
    whole = all(isinstance(edge, int) and not isinstance(edge, bool) for edge in (start, stop))
    if not whole or not 0 <= start < stop <= total:
        raise UserError(
            f"start={start!r}, stop={stop!r} is no range of the {total} layers of {name!r}: 0 <= start < stop <= {total}"
        )
    return stop - start
