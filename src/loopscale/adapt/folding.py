"""fold: eps goes into the output projections, so that inference multiplies no more; `unfold` takes it out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.adapt.branch_hook import drop_compiled, install, remove
from loopscale.adapt.output_weights import Kept, absorb, check_same, take_out
from loopscale.adapt.verify import evaluating
from loopscale.errors import UserError, expect, foreign
from loopscale.nn import LoopedTransformer, ModelConfig
from loopscale.nn.sampler import FixedLoops
from loopscale.parameterization import RULES, Depth, Rule
from loopscale.probe.batch import call_model, first_float, prepare
from loopscale.speaker import handle_of

PLACE = "_loopscale_folded"


class Folded:
    """What was folded, for which N, and the weights as they were: a copy, memory for exactness."""

    def __init__(self, model: nn.Module, loops: int, handle: Any = None) -> None:
        self.model = model
        self.loops = loops
        self.handle = handle
        self.kept: dict[str, Kept] = {}
        self.plain: tuple[ModelConfig, Rule] | None = None
        self.verified = "not verified"

    def unfold(self) -> nn.Module:
        """Take the scale out of the weights and put it where it was.

        Bit by bit where the weights are those that `fold` wrote; weights trained or loaded since are divided by it.
        """
        take_out(self.model, self.kept)
        if isinstance(self.model, LoopedTransformer) and self.plain is not None:
            self.model.config, self.model.rule = self.plain
            hooks = self.model.core._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if isinstance(hook, OneN)]:
                hooks.pop(key)
                self.model.core._forward_pre_hooks_with_kwargs.pop(key, None)
        else:
            for branch in self.handle.branches:
                install(self.model.get_submodule(branch.name))
            self.handle.folded = None
            self.handle.set_loops(self.loops)
        vars(self.model).pop(PLACE, None)
        drop_compiled()
        return self.model

    def give_up(self) -> None:
        """Put the weights back as they were, whatever they are now, and the scale with them."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, one in self.kept.items():
                parameters[name].copy_(one.value)
        self.kept.clear()
        self.unfold()

    def __str__(self) -> str:
        return f"folded for N = {self.loops}: {len(self.kept)} weights carry the scale; {self.verified}"


def fold(model: nn.Module, loops: int | None = None, *, batch: Any = None) -> Folded:
    """Multiply the weights that end each branch by its scale, for this N (default: the present), and take the scale
    off.

    For a model after `attach` or `convert(steps="even")`, and for `LoopedTransformer`. The logits are the same up to
    rounding (bit by bit when eps is a power of two), checked on `batch` (made up when left out). N is fixed then:
    a call at a different N raises; call `fold` with the new N, or `unfold` first.

    Raises `UserError`, the model untouched: a model without a scale, a damped conversion (its first visit has another
    scale than the others), a branch that does not end in a weight of its own.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> model = LoopedTransformer(ModelConfig(layers=4, loops=8))
    >>> str(fold(model)).partition(":")[0], model.residual_scale(8)
    ('folded for N = 8', 1.0)
    """
    expect(model, isinstance(model, nn.Module), "a torch.nn.Module", "pass the model itself")
    if PLACE in vars(model):
        unfold(model)
    if isinstance(model, LoopedTransformer):
        return _house(model, model.config.loops if loops is None else loops)
    handle = handle_of(model)
    if handle is None:
        raise UserError(
            f"{type(model).__name__} carries no scale to fold: attach(model, loops=...) or convert it first"
        )
    if not handle.branches:
        raise UserError(
            "damped visits have another scale than the first, which no weight can hold: convert with steps='even' to fold"
        )
    return _foreign(handle, handle.loops if loops is None else loops, batch)


def unfold(model: nn.Module) -> nn.Module:
    """Take the scale out of the weights again; untouched, the model is bit-identical to what it was before `fold`.

    Weights that were trained or loaded since are divided by the scale: the model computes what it computes folded.

    Raises `UserError` when nothing is folded, or a folded weight was replaced.
    """
    folded = vars(model).get(PLACE)
    if folded is None:
        raise UserError(f"this {type(model).__name__} is not folded: call fold(model) first")
    folded.unfold()
    return model


def _foreign(handle: Any, loops: int, batch: Any) -> Folded:
    model, before_loops = handle.model, handle.loops
    if any(p.is_meta for p in model.parameters()):
        raise UserError("the model is on the meta device: load its weights first, then fold")
    with evaluating(model):
        made = prepare(model, batch)
    handle.set_loops(loops)
    folded = Folded(model, loops, handle)
    reference = _output(model, lambda: call_model(model, made))
    remove(model)
    try:
        with evaluating(model), foreign("a branch cannot be called by itself, to fold its scale into its weights"):
            for visits in dict.fromkeys(handle.visits(branch) for branch in handle.branches):
                names = [branch.name for branch in handle.branches if handle.visits(branch) == visits]
                absorb(model, names, handle.factor(visits), made, folded.kept)
        folded.verified = check_same(_output(model, lambda: call_model(model, made)), reference)
    except BaseException:
        folded.give_up()
        handle.set_loops(before_loops)
        raise
    vars(model)[PLACE] = folded
    handle.folded = loops
    handle.note()
    drop_compiled()
    return folded


def _output(model: nn.Module, run: Callable[[], Any]) -> Tensor:
    with evaluating(model), torch.no_grad():
        out = first_float(run())
    assert out is not None
    return out


def _house(model: LoopedTransformer, loops: int) -> Folded:
    Depth(loops, 1)
    folded, config, rule = Folded(model, loops), model.config, model.rule
    tokens = torch.randint(0, config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(model.embedding.weight.device)
    reference = _output(model, lambda: model(tokens, loops=loops))
    if config.scale == "freeze" and loops != config.loops:
        raise UserError(f"this model freezes eps at N = {config.loops}: fold it at that, not at {loops}")
    scales = {"core": model.residual_scale(loops), "once": model.residual_scale(1)}
    for name, weight in _house_outputs(model):
        kept = Kept(weight.detach().clone(), scales["core" if name.startswith("core.") else "once"])
        folded.kept[name] = kept
        with torch.no_grad():
            weight.copy_(kept.now())
    plain = "none" if rule.norm == "pre" else rule.name
    # The stored config says what the weights now are: a network without a depth rule, at this N.
    model.config = dataclasses.replace(config, rule=plain, strength=1.0, loops=loops, sampler=FixedLoops())
    model.rule = RULES["none"] if rule.norm == "pre" else rule
    folded.plain = config, rule
    model.core.register_forward_pre_hook(OneN(loops), with_kwargs=True)
    try:
        folded.verified = check_same(_output(model, lambda: model(tokens, loops=loops)), reference)
    except BaseException:
        folded.give_up()
        raise
    vars(model)[PLACE] = folded
    drop_compiled()
    return folded


def _house_outputs(model: LoopedTransformer) -> Iterator[tuple[str, nn.Parameter]]:
    after = model.config.placement == "sandwich"  # a norm after the branch would undo a factor before it
    ends = (".attention_after.weight", ".mlp_after.weight") if after else (".attention.out.weight", ".mlp.down.weight")
    return ((name, weight) for name, weight in model.named_parameters() if name.endswith(ends))


class OneN:
    """Refuse a call at a different N than the folded one."""

    def __init__(self, loops: int) -> None:
        self.loops = loops

    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Compare the N of a call with the folded one."""
        asked = kwargs["loops"]
        if asked != self.loops:
            raise UserError(
                f"the model is folded for N = {self.loops}, not {asked}: fold(model, loops={asked}), or unfold(model)"
            )
