"""attach and detach: the residual scale on the branches of a model that was not written for it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from loopscale.adapt.find import Branch, by_convention, by_glob, marked_once
from loopscale.adapt.handle import PLACE, Attachment, attached_to, compare
from loopscale.adapt.hook import BranchHook, Scales, drop_compiled, install
from loopscale.adapt.stacking import DepthRuleWarning, factor_in_config, factor_in_modules, in_weights
from loopscale.adapt.trace import by_trace
from loopscale.adapt.verify import Verdict, evaluating, verify
from loopscale.errors import UserError
from loopscale.parameterization import Depth, Rule, get_rule
from loopscale.probe.batch import prepare

Patterns = str | Sequence[str] | None
TRACED = "tracing the additions"


def attach(
    model: nn.Module,
    loops: int | None = None,
    *,
    layers: int | None = None,
    rule: str | Rule = "looped",
    strength: float = 1.0,
    base_layers: int | None = None,
    branches: Patterns = None,
    once: Patterns = None,
    batch: Any = None,
    check: bool = True,
    stacked: Literal["refuse", "allow"] = "refuse",
) -> Attachment:
    """Scale every residual branch of `model` in place: x + eps * f(x), eps = lambda / (N sqrt(m_L)) (or another
    `rule`). `loops`: how often the model's own forward visits its layers (1: it does not loop); always to be given.

    Parameter names, state dict and modules stay as they are; forward hooks do the work. `branches`: globs of modules
    whose output is added to the stream; left out, they are found by the names of known families, else by tracing the
    additions. `once`: globs of layers or branches visited once (prelude, coda): N = 1 for them. `layers`: L, counted
    when left out. `batch`: what to check on (a tensor, tuple or dict; made up when left out); `check=False` leaves the
    check out.

    Raises `UserError`, the model untouched: a pattern without a match, a norm or another module that is no branch, a
    model that is attached already, one with a residual factor of its own (a `Loop`, `ScaledResidual` or `ScaledUpdate`
    in it, a factor in its config; unless stacked="allow"), no `loops`, a check that fails.

    >>> block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    >>> handle = attach(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), loops=8)
    >>> round(handle.residual_scale, 4), handle.layers
    (0.0884, 2)

    Source: arXiv:2606.18524; the skip scale of Post-LN rules is carried by the branch (`Attachment.factor`).
    """
    _attachable(model)
    if loops is None:
        raise UserError(
            "attach needs loops=, how often the model's forward visits its layers, since eps depends on it: "
            "attach(model, loops=8), or loops=1 for plain depth"
        )
    row = get_rule(rule)
    refusal = factor_in_modules(model) or factor_in_config(model)
    if refusal is not None and stacked != "allow":
        raise UserError(refusal)
    found, how = _find(model, branches, batch)
    if once is not None:
        found = marked_once(found, _list(once))
    depth = Depth(loops, _layers(model, found) if layers is None else layers)
    handle = Attachment(model, found, row, depth, strength, base_layers)
    handle.found_by = how
    given = {"branches": branches, "once": once}
    handle.patterns = {name: _list(value) for name, value in given.items() if value is not None}
    if check:
        _check(model, handle, batch)
    stored = getattr(getattr(model, "config", None), "loopscale", None)
    if stored is not None:
        compare(stored, handle.record())
    handle.warnings += in_weights(model, found)
    for text in handle.warnings:
        warnings.warn(text, DepthRuleWarning, stacklevel=2)
    _install(model, handle)
    return handle


def detach(model: nn.Module) -> nn.Module:
    """Take the scale off again; the model is bit-identical to what it was.

    Raises `UserError` when nothing is attached.
    """
    return attachment(model).detach()


def attachment(model: nn.Module) -> Attachment:
    """The handle of an attached model (also of a deepcopy of one).

    Raises `UserError` when nothing is attached.
    """
    handle: Attachment | None = attached_to(model)
    if handle is None:
        raise UserError(f"nothing is attached to this {type(model).__name__}: call attach(model, loops=...) first")
    return handle


def _attachable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"attach needs a torch module, got {type(model).__name__}")
    if hasattr(model, "_orig_mod"):
        raise UserError("the model is compiled already: attach(model) first, then torch.compile(model)")
    if attached_to(model) is not None:
        raise UserError("the model is attached already: change N with handle.set_loops(n), or detach(model) first")
    if callable(getattr(model, "residual_scale", None)):
        raise UserError(
            f"{type(model).__name__} scales its branches itself: give it the rule, attach is for other models"
        )


def _find(model: nn.Module, patterns: Patterns, batch: Any) -> tuple[list[Branch], str]:
    if patterns is not None:
        return by_glob(model, _list(patterns)), f"the pattern {patterns!r}"
    found, families = by_convention(model)
    if found:
        return found, f"convention: {'; '.join(families)}"
    return _traced(model, batch), TRACED


def _traced(model: nn.Module, batch: Any) -> list[Branch]:
    with evaluating(model):
        made = prepare(model, batch)
    found = by_trace(model, made)
    if not found:
        raise UserError(
            f"no residual branches found in {type(model).__name__}, neither by name nor by tracing the additions: "
            "name the modules whose output is added to the stream, branches='layers.*.attn' or a list"
        )
    return found


def _layers(model: nn.Module, found: list[Branch]) -> int:
    """L: the layers of the core; of an encoder and a decoder, which have a stream each, those of the longer."""
    layers = {branch.layer for branch in found if not branch.once}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        stacks = [layer.rpartition(".")[0] for layer in layers]
        return max(stacks.count(stack) for stack in stacks)
    return len(layers)


def _check(model: nn.Module, handle: Attachment, batch: Any) -> None:
    if any(p.is_meta for p in model.parameters()):
        handle.verified = "not verified: the model is on the meta device"
        return
    with evaluating(model):
        made = prepare(model, batch)
    try:
        verdict = verify(model, handle.branches, made)
    except UserError:
        # The names misled: a model of one's own may use a family's names for something else.
        traced = by_trace(model, made) if handle.found_by.startswith("convention") else []
        if not traced or any(branch.once for branch in handle.branches):
            raise
        handle.branches, handle.found_by = traced, TRACED
        handle.depth = Depth(handle.loops, _layers(model, traced))
        verdict = verify(model, traced, made)
    _norm_placement(handle, verdict)
    core = "its norms alone" if handle.post_norm else "the identity"
    handle.verified = (
        f"verified: bit-identical at scale 1, at strength 0 each layer is {core} ({verdict.layers} layers)"
    )


def _norm_placement(handle: Attachment, verdict: Verdict) -> None:
    # One layer of many may norm its input for all (RWKV's first): that is no Post-LN model.
    handle.post_norm = 2 * len(verdict.post_norm) > verdict.layers
    if handle.post_norm and handle.rule.norm == "pre":
        handle.warnings.append(
            f"{verdict.post_norm[0]!r} norms the sum (Post-LN), and {handle.rule.name!r} is for pre-norm models: the "
            "norm rescales the stream at each visit; rule='deeploop' or 'deepnorm' is made for this"
        )
    if not handle.post_norm and handle.rule.norm == "post":
        raise UserError(
            f"rule {handle.rule.name!r} is for Post-LN models and this one passes its stream on unnormed: "
            "use a pre-norm rule such as 'looped'"
        )


def _install(model: nn.Module, handle: Attachment) -> None:
    if any(p.dtype == torch.float64 for p in model.parameters()):
        handle.scales = Scales(torch.float64)
    for branch in handle.branches:
        install(model.get_submodule(branch.name), BranchHook(handle.scales, branch.once))
    handle.set_loops(handle.loops)
    vars(model)[PLACE] = handle
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        config.loopscale = handle.record()
    drop_compiled()


def _list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)
