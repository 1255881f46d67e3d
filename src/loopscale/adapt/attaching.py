"""attach and detach: the residual scale on the branches of a model that was not written for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from loopscale.adapt.branch_hook import BranchHook, hook_of, install, watch_passes
from loopscale.adapt.branches import Branch, by_convention, by_glob, marked_once
from loopscale.adapt.handle import Handle, Scaling, compare
from loopscale.adapt.present_rules import DepthRuleWarning, factor_in_config, factor_in_modules, in_weights
from loopscale.adapt.trace import by_trace
from loopscale.adapt.verify import Verdict, counted, evaluating, layers_of, verify
from loopscale.errors import UserError, expect, settings
from loopscale.parameterization import Depth, Rule, get_rule
from loopscale.parameterization.roles import starred
from loopscale.probe.batch import prepare
from loopscale.probe.untouched import measuring, refuse_hidden
from loopscale.speaker import handle_of


class Attachment(Handle):
    """Scales the branches of `model`: x + eps f(x)."""

    kind = "attached"

    def __init__(self, model: nn.Module, branches: list[Branch], depth: Depth, scaling: Scaling) -> None:
        super().__init__(model, scaling)
        self.branches = branches
        self._depth = depth
        self.found_by = ""
        self.patterns: dict[str, Any] = {}
        self.post_norm = False
        # The branches that a pass showed to be visited N times, and of how many weights: a call of them per visit.
        self.acting: list[str] = []
        self.weights = 0
        self.hooks: list[BranchHook | None] = []
        self.warned = False

    @property
    def depth(self) -> Depth:
        """N and L as the diagnosis counts them."""
        return self._depth

    def recount(self, branches: list[Branch], depth: Depth, calls: Mapping[str, int]) -> None:
        """Take over what a pass showed."""
        self.branches, self._depth = branches, depth
        self.acting = [branch.name for branch in branches if branch.visits is None and calls.get(branch.name)]
        self.weights = sum(calls[name] for name in self.acting) // depth.loops

    def install(self) -> None:
        """Put a hook on every branch."""
        for branch in self.branches:
            install(self.model.get_submodule(branch.name))
        self.enter()
        self.set_loops(self.loops)

    def _write(self) -> None:
        super()._write()
        self.hooks = [hook_of(self.model.get_submodule(name)) for name in self.acting]
        if self.weights and self.folded is None:
            watch_passes(self.model)

    def begin_pass(self) -> None:
        """Count anew."""
        for hook in self.hooks:
            if hook is not None:
                hook.calls = 0

    def end_pass(self) -> None:
        """Warn once when the pass that ended made more or fewer visits than N. Compiled code is not counted."""
        calls = [0 if hook is None else hook.calls for hook in self.hooks]
        visits, rest = divmod(sum(calls), self.weights)
        if visits == self.loops or rest or not all(calls) or self.warned or measuring():
            return
        self.warned = True
        warnings.warn(
            f"the forward pass visits the layers {visits} times and eps is that of N = {self.loops}: set both, the model's "
            "own number of loops and handle.set_loops",
            DepthRuleWarning,
            stacklevel=2,
        )

    def _set(self, loops: int) -> None:
        self._depth = Depth(loops, self.layers)

    def _inside(self) -> list[str]:
        return [branch.layer for branch in self.branches]

    def record(self) -> dict[str, Any]:
        """Return the rule and the patterns as they are stored with a checkpoint, plain values."""
        return {**super().record(), **self.patterns}

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        rows = [
            {
                "name": b.name,
                "layer": b.layer,
                "once": b.visits == 1,
                "visits": self.visits(b),
                "factor": self.factor(self.visits(b)),
            }
            for b in self.branches
        ]
        more = {"found_by": self.found_by, "branches": rows, "post_norm": self.post_norm}
        return {**super().to_json(), "residual_scale": self.residual_scale, **more}

    def __str__(self) -> str:
        kinds: dict[tuple[str, int], int] = {}
        for branch in self.branches:
            kind = starred(branch.name), self.visits(branch)
            kinds[kind] = kinds.get(kind, 0) + 1
        rows = [
            f"  {name}  x {count}: visited {'once' if visits == 1 else f'{visits} times'}, multiplied by "
            f"{self.factor(visits):.4g}"
            for (name, visits), count in kinds.items()
        ]
        head = (
            f"{type(self.model).__name__}: {len(self.branches)} branches, {self.layers} layers in the core, rule "
            f"{self.rule.name!r}, N = {self.loops}: {self.spelled(self.loops)}"
        )
        return "\n".join([head, *rows, f"found by {self.found_by}; {self._notes()[0]}", *self._notes()[1:]])


Patterns = str | Sequence[str] | None
TRACED = "tracing the additions"


@dataclass(frozen=True)
class AttachSettings:
    """What to scale, and how strongly; `attach` takes each as a keyword."""

    layers: int | None = None
    rule: str | Rule = "looped"
    strength: float = 1.0
    base_layers: int | None = None
    branches: Patterns = None
    once: Patterns = None
    stacked: Literal["refuse", "allow"] = "refuse"


def attach(
    model: nn.Module, loops: int | None = None, *, batch: Any = None, check: bool = True, **keywords: Any
) -> Attachment:
    """Scale every residual branch of `model` in place: x + eps * f(x), eps = lambda / (N sqrt(m_L)).

    `loops`: N, how often the model's own forward visits its layers (1: it does not loop); always to be given, and
    compared with what one pass on `batch` (a tensor, tuple or dict; made up when left out) shows. Layers visited once
    (prelude, coda) get the scale of N = 1; they, layers never called and further modules with the same weights do not
    count as L. `check=False` leaves pass and check out.

    Keywords: `rule` ("looped"), `strength` lambda (1.0), `base_layers`; `branches`, globs of
    modules whose output is added to the stream (left out: found by the names of known families, else by tracing the
    additions); `once`, globs of layers or branches visited once; `layers`, L in the place of the counted one;
    `stacked="allow"` for a model with a residual factor of its own.

    Parameter names, state dict and modules stay as they are; forward hooks do the work.

    Raises `UserError`, the model untouched: an N that the pass contradicts, a pattern without a match, a norm or another
    module that is not a branch, a model that is attached already, one with a residual factor of its own (a `Loop`,
    `ScaledResidual` or `ScaledUpdate` in it, a factor in its config), no `loops`, a check that fails.

    >>> block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    >>> handle = attach(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), loops=1)
    >>> round(handle.residual_scale, 4), handle.layers
    (0.7071, 2)

    Source: arXiv:2606.18524; the skip scale of Post-LN rules is carried by the branch (`Attachment.factor`).
    """
    chosen = settings(AttachSettings, keywords, attach)
    refuse(model)
    if loops is None:
        raise UserError(
            "attach needs loops=, how often the model's forward visits its layers, since eps depends on it: "
            "attach(model, loops=8), or loops=1 for plain depth"
        )
    refusal = factor_in_modules(model) or factor_in_config(model)
    if refusal is not None and chosen.stacked != "allow":
        raise UserError(refusal)
    found, how = find(model, chosen.branches, batch)
    if chosen.once is not None:
        found = marked_once(found, _list(chosen.once))
    depth = Depth(loops, chosen.layers or layers_of(model, found))
    scaling = Scaling(get_rule(chosen.rule), chosen.strength, chosen.base_layers)
    handle = Attachment(model, found, depth, scaling)
    handle.found_by = how
    given = {"branches": chosen.branches, "once": chosen.once}
    handle.patterns = {name: _list(value) for name, value in given.items() if value is not None}
    if check:
        _check(handle, batch, chosen.layers)
    compare(model, handle.record())
    handle.warnings += in_weights(model, handle.branches)
    for text in handle.warnings:
        warnings.warn(text, DepthRuleWarning, stacklevel=2)
    handle.install()
    return handle


def detach(model: nn.Module) -> nn.Module:
    """Take the scale off again; the model is bit-identical to what it was.

    Raises `UserError` when nothing is attached.
    """
    return attachment(model).detach()


def attachment(model: nn.Module) -> Attachment:
    """Return the handle of an attached model (also of a deepcopy of one).

    Raises `UserError` when nothing is attached.
    """
    handle: Attachment | None = handle_of(model)
    if handle is None:
        raise UserError(f"nothing is attached to this {type(model).__name__}: call attach(model, loops=...) first")
    return handle


def refuse(model: nn.Module) -> None:
    """Raise `UserError` for a model that can be neither attached nor converted."""
    expect(model, isinstance(model, nn.Module), "a torch.nn.Module", "build or load the model first")
    refuse_hidden(model)
    if hasattr(model, "_orig_mod"):
        raise UserError("the model is compiled already: attach(model) first, then torch.compile(model)")
    if handle_of(model) is not None:
        raise UserError("the model is attached already: change N with handle.set_loops(n), or detach(model) first")
    if callable(getattr(model, "residual_scale", None)):
        raise UserError(
            f"{type(model).__name__} scales its branches itself: give it the rule, attach is for other models"
        )


def find(model: nn.Module, patterns: Patterns, batch: Any) -> tuple[list[Branch], str]:
    """Return the branches, and the way by which they were found.

    Raises `UserError` when there are none, or one is a scripted module, which takes no hook.
    """
    found, how = _find(model, patterns, batch)
    for branch in found:
        if isinstance(model.get_submodule(branch.name), torch.jit.ScriptModule):
            raise UserError(
                f"the branch {branch.name!r} is a scripted module, which takes no hook: put back what it was made from"
            )
    return found, how


def _find(model: nn.Module, patterns: Patterns, batch: Any) -> tuple[list[Branch], str]:
    if patterns is not None:
        return by_glob(model, _list(patterns)), f"the pattern {patterns!r}"
    found, families = by_convention(model)
    if found:
        return found, f"convention: {'; '.join(families)}"
    with evaluating(model):
        made = prepare(model, batch)
    found = by_trace(model, made)
    if not found:
        raise UserError(
            f"no residual branches found in {type(model).__name__}, neither by name nor by tracing the additions: "
            "name the modules whose output is added to the stream, branches='layers.*.attn' or a list"
        )
    return found, TRACED


def _check(handle: Attachment, batch: Any, layers: int | None) -> None:
    model = handle.model
    if any(p.is_meta for p in model.parameters()):
        handle.verified = "not verified: the model is on the meta device"
        return
    with evaluating(model):
        made = prepare(model, batch)
    branches = handle.branches
    try:
        verdict = verify(model, branches, made)
    except UserError:
        # The names misled: a user's model may use a family's names for something else.
        traced = by_trace(model, made) if handle.found_by.startswith("convention") else []
        if not traced or any(branch.visits == 1 for branch in branches):
            raise
        branches, handle.found_by = traced, TRACED
        verdict = verify(model, branches, made)
    branches, unique, warning = counted(model, branches, verdict, handle.loops)
    handle.recount(branches, Depth(handle.loops, layers or unique), {} if warning else verdict.visits)
    if warning:
        handle.warnings.append(warning)
    if layers not in (None, unique):
        handle.warnings.append(f"you say layers={layers} and {unique} were counted: eps is that of L = {layers}")
    _norm_placement(handle, verdict)
    core = "its norms alone" if handle.post_norm else "the identity"
    each = f"at strength 0 each layer is {core} ({verdict.layers} layers)"
    alone = "the visits are written in the model's own forward, so that no layer could be looked at by itself"
    handle.verified = f"verified: bit-identical at scale 1, {each if verdict.layers else alone}"


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


def _list(patterns: str | Sequence[str]) -> list[str]:
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    for glob in globs:
        expect(
            glob, isinstance(glob, str), "the names of modules", "such as branches=['layers.*.attn', 'layers.*.mlp']"
        )
    return globs
