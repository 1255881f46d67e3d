"""What the handles of attached and converted models share: the rule, the hooks, the knob for N, and the way back."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import nn

from loopscale.adapt.branch_hook import drop_compiled, hook_of, remove
from loopscale.adapt.branches import Branch
from loopscale.errors import UserError
from loopscale.optim.groups import watch_groups
from loopscale.optim.roles import taken_as_hidden, tell_roles, tied_names
from loopscale.parameterization import Depth, Role, Rule, Width
from loopscale.parameterization.depth import check_strength, relative_layers
from loopscale.parameterization.roles import role_lines, starred
from loopscale.speaker import forget, handle_of, leave


class Undo:
    """Steps back, in reverse order. Partials, not closures: a deepcopy of the model then undoes itself."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def run(self) -> None:
        """Take every change back; a step that raises is tried again by the next call."""
        while self.steps:
            self.steps[-1]()
            self.steps.pop()


class Scaling(NamedTuple):
    """The rule and its numbers: eps = strength * rule(N, L / base_layers)."""

    rule: Rule
    strength: float
    base_layers: int | None


class Handle(ABC):
    """A change of `model` that can be taken back; kept by the model itself, so that a deepcopy has its own.

    `set_loops(n)` is the run-time knob, `detach()` or the end of a `with` block the way back, `str(handle)` the report.
    It states `roles()`, `depth`, `rule`, `strength` and `base_layers` for `param_groups` and the diagnosis.
    """

    kind: Literal["attached", "converted"]

    def __init__(self, model: nn.Module, scaling: Scaling) -> None:
        self.model = model
        self.rule, self.strength, self.base_layers = scaling
        check_strength(self.strength)
        relative_layers(Depth(1, 1), self.base_layers)
        self.undo = Undo()
        self.undo.steps.append(partial(_write_rule, model, _rule_in(model)))
        self.branches: list[Branch] = []
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32
        self.verified = "not verified"
        self.warnings: list[str] = []
        self.width_ratio: Width | None = None
        self.folded: int | None = None
        self.announced = False

    @property
    @abstractmethod
    def depth(self) -> Depth:
        """N, and L unique layers of the core."""

    @property
    def loops(self) -> int:
        """N."""
        return self.depth.loops

    @property
    def layers(self) -> int:
        """L, the unique layers of the core."""
        return self.depth.layers

    @property
    def residual_scale(self) -> float:
        """The factor on the core's branches now: eps, or eps / alpha for a Post-LN rule."""
        return self.factor(self.loops)

    def factor(self, loops: int) -> float:
        """Return what a branch is multiplied by when it is visited this often.

        norm(alpha x + f(x)) = norm(x + f(x) / alpha), up to the norm's epsilon: the branch carries the skip scale of a
        Post-LN rule.
        """
        return self._factor(loops, self.strength)

    def _factor(self, loops: int, strength: float) -> float:
        depth = Depth(loops, self.layers)
        eps = self.rule.residual_scale(depth, strength, self.base_layers).value
        return eps / self.rule.skip_scale(depth).value

    def spelled(self, loops: int) -> str:
        """Return the factor at this many loops as a sum that can be checked: eps 0.0078 = strength 0.125 x 0.0625."""
        base = "" if self.base_layers is None else f" (L / base_layers = {self.layers} / {self.base_layers})"
        return f"eps {self.factor(loops):.4g} = strength {self.strength:g} x {self._factor(loops, 1.0):.4g}{base}"

    def set_loops(self, loops: int) -> Self:
        """Scale for this many loops from now on.

        Raises `UserError` when loops < 1, when the scale is folded into the weights, or when a branch was replaced.
        """
        Depth(loops, 1)
        if self.folded is not None and loops != self.folded:
            raise UserError(
                f"the model is folded for N = {self.folded}: fold(model, loops={loops}), or unfold(model) first"
            )
        self._in_place()
        self._set(loops)
        self._write()
        self.note()
        return self

    @abstractmethod
    def _set(self, loops: int) -> None:
        """Store the new N."""

    def visits(self, branch: Branch) -> int:
        """Return how often a branch is visited; a Post-LN rule counts all executed layers for every branch."""
        return self.loops if branch.visits is None or self.rule.norm == "post" else branch.visits

    def _write(self) -> None:
        """Give every hook its scale: one tensor for each number of visits, so that a compiled graph has few inputs."""
        tensors: dict[int | None, torch.Tensor] = {}
        for branch in self.branches if self.folded is None else ():
            scale = torch.tensor(self.factor(self.visits(branch)), dtype=self.dtype)
            hook = hook_of(self.model.get_submodule(branch.name))
            if hook is not None:
                hook.scale = tensors.setdefault(branch.visits, scale)

    def _in_place(self) -> None:
        """Raise `UserError` when a branch was replaced after attach: the new module has no scale."""
        mine = self.folded is None and handle_of(self.model) is self
        for branch in self.branches if mine else ():
            module = self.model.get_submodule(branch.name)
            if hook_of(module) is None:
                raise UserError(
                    f"{branch.name!r} was replaced by a {type(module).__name__} after attach, so it is no longer scaled: "
                    "detach, then attach again"
                )

    def note(self) -> None:
        """Write what holds now into a config that names the rule."""
        if _rule_in(self.model) is not None:
            _write_rule(self.model, self.record() if self.folded is None else {**self.record(), "folded": self.folded})

    def enter(self) -> None:
        """Leave the handle on the model and, where it has a config, the rule in it."""
        leave(self.model, self)
        watch_groups(self.model)
        if hasattr(getattr(self.model, "config", None), "to_dict"):
            _write_rule(self.model, self.record())
        drop_compiled()

    def detach(self) -> nn.Module:
        """Take everything off again: the model is bit-identical to what it was. Doing it twice is no error."""
        folded = vars(self.model).get("_loopscale_folded")
        if folded is not None:
            folded.unfold()
        self.undo.run()
        remove(self.model)
        forget(self.model)
        drop_compiled()
        return self.model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def named_parameters(self, **more: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the named parameters of the model."""
        return self.model.named_parameters(**more)

    def roles(self) -> dict[str, Role]:
        """Return the role of every parameter, inferred from module, name and layers; printed (stderr) the first time.

        A guess wants eyes: pass `roles=` to `param_groups` to correct it.
        """
        self._in_place()
        roles, unsure = tell_roles(self.model, self.inside())
        leading = os.environ.get("RANK", "0") == "0"  # as torchrun and its like number the processes
        self.announced, announce = True, leading and not self.announced
        if announce:
            rows = [f"  {line}" for line in role_lines(roles)]
            print("\n".join(["loopscale: roles inferred from modules and names", *rows]), file=sys.stderr)
            for name, first in dict.fromkeys((starred(a), starred(b)) for a, b in tied_names(self.model).items()):
                print(f"  {name} is {first}: one role", file=sys.stderr)
            if unsure:
                print(f"loopscale: warning: {taken_as_hidden(unsure, 'roles={...}')}", file=sys.stderr)
        return roles

    def inside(self) -> list[str]:
        """Return the names of the parameters in the layers."""
        layers = tuple(f"{part}." if part else "" for part in self._inside())
        return [name for name, _ in self.model.named_parameters() if name.startswith(layers)]

    @abstractmethod
    def _inside(self) -> list[str]:
        """Return the names of the layers, whose parameters are inside the branches."""

    def record(self) -> dict[str, Any]:
        """Return the rule as it is stored with a checkpoint, plain values."""
        return {
            "rule": self.rule.name,
            "loops": self.loops,
            "layers": self.layers,
            "strength": self.strength,
            "base_layers": self.base_layers,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**self.record(), "verified": self.verified, "warnings": list(self.warnings)}

    def _notes(self) -> list[str]:
        return [self.verified, *(f"warning: {text}" for text in self.warnings)]


def _rule_in(model: nn.Module) -> Any:
    return getattr(getattr(model, "config", None), "loopscale", None)


def _write_rule(model: nn.Module, rule: dict[str, Any] | None) -> None:
    """Write the rule into the model's config; None takes it out."""
    config: Any = getattr(model, "config", None)
    if rule is not None:
        config.loopscale = rule
    elif config is not None:
        vars(config).pop("loopscale", None)


def compare(model: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Raise `UserError` when a checkpoint was trained under a different rule than `wanted`. N may differ."""
    stored = _rule_in(model)
    if stored is None:
        return
    if "folded" in stored:
        way = "unfold before saving" if "convert" in stored else "save it unfolded, or use it as it is"
        raise UserError(f"the checkpoint's weights are folded for N = {stored['folded']}, the scale is in them: {way}")
    if ("convert" in stored) != ("convert" in wanted):
        was = "converted" if "convert" in stored else "attached"
        raise UserError(
            f"the checkpoint was of a model that is {was}: call restore(model), or delete model.config.loopscale"
        )
    for name in ("convert", "start", "stop", "steps", "rule", "layers", "strength", "base_layers"):
        if name in stored and stored[name] != wanted[name]:
            raise UserError(
                f"the checkpoint was trained with {name} = {stored[name]!r} and you ask for {wanted[name]!r}: "
                "pass the stored one, or delete model.config.loopscale to start anew"
            )
