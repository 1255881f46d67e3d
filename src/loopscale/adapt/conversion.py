"""convert: layers start..stop of an existing model become a looped core, in place, N being a run-time knob."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from loopscale.adapt.attaching import Attachment, attach, find, refuse
from loopscale.adapt.branch_hook import install
from loopscale.adapt.branches import Branch, by_convention
from loopscale.adapt.handle import Handle, Scaling, compare
from loopscale.adapt.looped_layers import Core, dismiss, enlist
from loopscale.adapt.present_rules import DepthRuleWarning, factor_in_modules
from loopscale.adapt.tie import tie
from loopscale.adapt.verify import evaluating, verify
from loopscale.errors import UserError, expect, foreign, nearest, settings, transformers
from loopscale.parameterization import Depth, Rule, get_rule
from loopscale.parameterization.depth import check_strength
from loopscale.probe.batch import call_model, first_float, prepare
from loopscale.probe.noting import Given, noting
from loopscale.speaker import leave

Steps = Literal["damped", "even"]


class Conversion(Handle):
    """Visits the core's layers N times."""

    kind = "converted"

    def __init__(self, model: nn.Module, core: Core, steps: Steps, scaling: Scaling) -> None:
        super().__init__(model, scaling)
        self.core = core
        self.steps = steps
        self.stack = ""
        self.tied = ""

    @property
    def depth(self) -> Depth:
        """Loops and unique layers of the core."""
        return Depth(self.core.loops, len(self.core.layers))

    def step(self, loops: int) -> float:
        """Return what a visit counts for.

        damped: what each of the N - 1 visits after the first is mixed in with; even: eps, the factor on every branch.
        """
        return self.factor(self._visits(loops))

    def _visits(self, loops: int) -> int:
        return max(loops - 1, 1) if self.steps == "damped" else loops

    def _set(self, loops: int) -> None:
        self.core.loops = loops
        self.core.mix = torch.tensor(self.step(loops), dtype=self.dtype) if self.steps == "damped" else None

    def _inside(self) -> list[str]:
        return [self.stack]

    def record(self) -> dict[str, Any]:
        """Return what is stored with a checkpoint, plain values; `restore` reads it."""
        first = self.core.first
        span = {"convert": self.stack, "start": first, "stop": first + self.layers, "steps": self.steps}
        return {**span, **super().record()}

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**super().to_json(), "tied": self.tied, "step": self.step(self.loops)}

    def __str__(self) -> str:
        first, layers, total = self.core.first, self.layers, self.core.total
        what = "later visits are mixed in with" if self.steps == "damped" else "every branch is multiplied by"
        return "\n".join(
            [
                f"{type(self.model).__name__}: {self.stack}.{first}..{first + layers - 1} are visited N = {self.loops} "
                f"times; prelude {first}, core {layers}, coda {total - first - layers} layers",
                f"rule {self.rule.name!r}, {self.steps}: {what} {self.spelled(self._visits(self.loops))}; {self.tied}",
                *self._notes(),
            ]
        )


STRENGTHS = {"damped": 0.1, "even": 1.0}


@dataclass(frozen=True)
class ConvertSettings:
    """How the core is made and visited; `convert` takes each as a keyword."""

    layers: int | tuple[int, int] | None = None
    tie: Literal["first", "average"] = "first"
    steps: Steps = "damped"
    strength: float | None = None
    rule: str | Rule = "looped"
    base_layers: int | None = None
    stack: str | None = None


def convert(
    model: nn.Module,
    start: int | None = None,
    stop: int | None = None,
    loops: int | None = None,
    *,
    batch: Any = None,
    check: bool = True,
    **keywords: Any,
) -> Conversion:
    """Loop the layers start..stop-1 of `model` in place: prelude / core / coda, the core visited `loops` times.

    steps="damped" (for pretrained weights): the first visit is as it was, each of the N - 1 others is mixed in,
    x <- x + s (stack(x) - x) with s = strength / (N - 1) under rule "looped", strength 0.1 if not given; at strength 0
    (or N = 1) the model is bit by bit the original, and its loss moves away continuously. steps="even" (to train from
    the start): every visit scales each branch by the rule, eps = strength / (N sqrt(m_L)), strength 1 if not given;
    layers outside the core by the eps of N = 1.

    Keywords: `layers`, a pair (2, 5) for layers 2..5 in the place of start=2, stop=6, or L
    unique layers of the core, a divisor of stop - start (default: all of them); layer i then stands for start + i,
    start + i + L, ... and `tie` says whether with the "first" one's weights or their "average". `base_layers` is L if
    not given. `stack` names the list of layers where there are several (encoder and decoder). `batch` and `check`: as
    in `attach`. A KV cache gets a slot for each visit.

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
    chosen = settings(ConvertSettings, keywords, convert)
    refuse(model)
    if "transformers" in sys.modules and hasattr(getattr(model, "config", None), "to_dict"):
        transformers()
    row = get_rule(chosen.rule)
    if chosen.steps not in STRENGTHS:
        raise UserError(f"unknown steps {chosen.steps!r}: {nearest(str(chosen.steps), STRENGTHS)}")
    if row.norm == "post" and chosen.steps == "damped":
        raise UserError(f"rule {row.name!r} has no damped steps: use 'looped'")
    refusal = factor_in_modules(model) if chosen.steps == "even" else None
    if refusal is not None:
        raise UserError(refusal)
    if loops is None:
        raise UserError("convert needs loops=, how often the core is visited: convert(model, 2, 6, loops=4)")
    handle = _make(model, _span(start, stop, chosen.layers), Depth(loops, 1).loops, chosen)
    try:
        _set_up(handle, loops, batch, check)
    except BaseException:
        handle.detach()
        raise
    for text in handle.warnings:
        warnings.warn(text, DepthRuleWarning, stacklevel=2)
    return handle


def _span(start: int | None, stop: int | None, layers: int | tuple[int, int] | None) -> tuple[Any, Any, int | None]:
    """Return start, stop and L; a pair of layers names the first and the last of the core."""
    if isinstance(layers, int) or layers is None:
        if start is None or stop is None:
            raise UserError("convert needs the layers of the core: convert(model, layers=(2, 5), loops=4) for 2..5")
        return start, stop, layers
    if len(layers) != 2:
        raise UserError(f"layers={layers!r} must name the first and the last layer of the core: layers=(2, 5) for 2..5")
    if start is not None or stop is not None:
        raise UserError(f"layers={layers!r} names the core, first and last layer: leave start and stop out")
    first, last = layers
    return first, last + 1 if isinstance(last, int) else last, None


def _make(model: nn.Module, span: tuple[Any, Any, int | None], loops: int, chosen: ConvertSettings) -> Conversion:
    start, stop, layers = span
    name, members = _stack(model, chosen.stack)
    count = _range(start, stop, len(members), name)
    unique = Depth(loops, count if layers is None else layers).layers
    strength = check_strength(STRENGTHS[chosen.steps] if chosen.strength is None else chosen.strength)
    core = Core(list(members)[start : start + unique], start, len(members) - count + unique)
    base = unique if chosen.base_layers is None else chosen.base_layers
    handle = Conversion(model, core, chosen.steps, Scaling(get_rule(chosen.rule), strength, base))
    tie(model, (name, members), (start, stop, unique), chosen.tie, handle.undo)
    handle.stack = name
    handle.tied = "layers as they were" if unique == count else f"{count} layers tied to {unique} ({chosen.tie})"
    return handle


def _set_up(handle: Conversion, loops: int, batch: Any, check: bool) -> None:
    model = handle.model
    compare(model, handle.record())
    leave(model, handle)
    made = None
    if check and not any(p.is_meta for p in model.parameters()):
        with evaluating(model):
            made = prepare(model, batch)
    if handle.steps == "even":
        _scale_branches(handle, made)
    handle.undo.steps.append(partial(dismiss, handle.core))
    enlist(handle.core)
    handle.set_loops(loops)
    if made is not None:
        _check(handle, made)
    handle.enter()


def _scale_branches(handle: Conversion, made: Any) -> None:
    found, _ = find(handle.model, None, made)
    inside = tuple(f"{handle.stack}.{handle.core.first + place}." for place in range(handle.layers))
    handle.branches = [Branch(b.name, b.layer, None if b.name.startswith(inside) else 1) for b in found]
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
        install(handle.model.get_submodule(branch.name))


def _check(handle: Conversion, made: Any) -> None:
    """Check that the model is as it was at N = 1, at strength 0 too (damped), and that each visit happens."""
    core, loops, mix = handle.core, handle.loops, handle.core.mix
    visits = 0

    def count(name: str, module: nn.Module, given: Given, output: Any) -> None:
        nonlocal visits
        visits += 1

    what = f"the layers {core.first}.. of {handle.stack!r} cannot be looped, does each keep the shape of the stream?"
    with (
        evaluating(handle.model),
        torch.no_grad(),
        foreign(what),
        noting(handle.model, count, [f"{handle.stack}.{core.first}"]),
    ):
        core.loops, core.mix = 1, None
        once = first_float(call_model(handle.model, made))
        core.loops, core.mix = loops, None if mix is None else torch.zeros_like(mix)
        still = first_float(call_model(handle.model, made))
        core.mix = mix
        moved = first_float(call_model(handle.model, made))
    assert once is not None and still is not None and moved is not None
    if visits != 1 + 2 * loops:
        times = visits // (1 + 2 * loops)
        raise UserError(
            f"the model itself runs {handle.stack!r} {times} times in a forward pass: it loops already, attach is for it"
            if times > 1
            else f"the core was visited {visits} times in three passes instead of {1 + 2 * loops}: it cannot be looped"
        )
    if once.shape != moved.shape:
        raise UserError(f"looping turned the output {tuple(once.shape)} into {tuple(moved.shape)}: it cannot be looped")
    if mix is not None and not torch.equal(once.nan_to_num(), still.nan_to_num()):
        raise UserError(
            f"at strength 0 the output {tuple(once.shape)} differs from the original's: the core cannot be damped"
        )
    handle.verified = "verified: every visit happens" + (
        ", at strength 0 the output is the original's bit by bit" if mix is not None else ""
    )


def _stack(model: nn.Module, name: str | None) -> tuple[str, nn.ModuleList]:
    """Return the list of layers: the one named, or the only longest one that is not inside a layer of another list."""
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


def restore(model: nn.Module, **given: Any) -> Attachment | Conversion:
    """Attach or convert as `model.config.loopscale` says, which `save_pretrained` stored and `from_pretrained` read.

    Keywords go to `attach` or `convert` (`loops=` may differ from the stored N; a different rule is an error).

    Raises `UserError` when the config holds nothing of the kind.
    """
    expect(
        model,
        isinstance(model, nn.Module),
        "a torch.nn.Module",
        "restore(Class.from_pretrained(folder))",
    )
    stored = getattr(getattr(model, "config", None), "loopscale", None)
    if not isinstance(stored, dict) or "rule" not in stored:
        raise UserError(f"the config of this {type(model).__name__} names no rule: call attach or convert with one")
    shared = {name: stored[name] for name in ("rule", "loops", "layers", "strength", "base_layers")}
    if "convert" not in stored:
        return attach(model, **{"branches": stored.get("branches"), "once": stored.get("once"), **shared, **given})
    span = {name: stored[name] for name in ("start", "stop", "steps")}
    return convert(model, **{**shared, **span, "stack": stored["convert"], **given})
