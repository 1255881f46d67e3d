"""The handle of an attached model: what was found and scaled, the knob for N, and the way back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from torch import nn

from loopscale.adapt.find import Branch
from loopscale.adapt.hook import BranchHook, Scales, drop_compiled, remove
from loopscale.errors import UserError
from loopscale.optim.roles_of import taken_as_hidden, tell_roles
from loopscale.parameterization import Depth, Role, Rule, Width
from loopscale.parameterization.depth import check_strength, relative_layers

PLACE = "_loopscale"


class Attachment:
    """Scales the branches of `model`; kept by the model itself, so that a deepcopy has its own.

    `set_loops(n)` is the run-time knob, `detach()` (or the end of a `with` block) the way back, `str(handle)` the
    report. It states `roles()`, `depth`, `rule` and `base_layers`, which is what `param_groups` asks of a model.
    """

    def __init__(
        self,
        model: nn.Module,
        branches: list[Branch],
        rule: Rule,
        depth: Depth,
        strength: float,
        base_layers: int | None,
    ) -> None:
        self.model = model
        self.branches = branches
        self.rule = rule
        self.depth = depth
        self.strength = check_strength(strength)
        self.base_layers = base_layers
        self.scales = Scales()
        self.found_by = ""
        self.patterns: dict[str, Any] = {}
        self.verified = "not verified"
        self.warnings: list[str] = []
        self.post_norm = False
        self.width_ratio: Width | None = None
        self.folded: int | None = None
        self._announced = False
        relative_layers(depth, base_layers)

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
        """What a branch is multiplied by at this many loops.

        norm(alpha x + f(x)) = norm(x + f(x) / alpha), up to the norm's epsilon: the branch carries the skip scale of a
        Post-LN rule.
        """
        depth = Depth(loops, self.layers)
        eps = self.rule.residual_scale(depth, self.strength, self.base_layers).value
        return eps / self.rule.skip_scale(depth).value

    def set_loops(self, loops: int) -> Attachment:
        """Scale for this many loops from now on. Raises `UserError` when loops < 1."""
        refuse_folded(self.folded, loops)
        self._in_place()
        self.depth = Depth(loops, self.layers)
        self._write()
        return self

    def _in_place(self) -> None:
        """Raise `UserError` when a branch was replaced by another module after attach, which then has no scale."""
        for branch in self.branches if self.folded is None and vars(self.model).get(PLACE) is self else ():
            module = self.model.get_submodule(branch.name)
            if not any(isinstance(hook, BranchHook) for hook in module._forward_hooks.values()):
                raise UserError(
                    f"{branch.name!r} was replaced by a {type(module).__name__} after attach, so it is no longer scaled: "
                    "detach, then attach again"
                )

    def _write(self) -> None:
        self.scales.core = self.scales.tensor(self.factor(self.loops))
        # A Post-LN rule counts all executed layers, also for layers visited once.
        once = self.loops if self.rule.norm == "post" else 1
        self.scales.once = self.scales.tensor(self.factor(once))
        self.note()

    def note(self) -> None:
        """Write what holds now into the model's config."""
        write_record(self.model, self.record(), self.folded)

    def detach(self) -> nn.Module:
        """Take everything off again: the model is bit-identical to what it was. Doing it twice is no error."""
        unfold_first(self.model)
        remove(self.model)
        forget(self.model)
        self.scales.core = self.scales.once = self.scales.tensor(1.0)
        drop_compiled()
        return self.model

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the model."""
        return self.model.named_parameters()

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, inferred from its module, its name and the layers found; printed (stderr) once.

        A guess wants eyes: pass `roles=` to `param_groups` to correct it.
        """
        self._in_place()
        self._announced, announce = True, not self._announced
        return layer_roles(self.model, [branch.layer for branch in self.branches], announce)

    def record(self) -> dict[str, Any]:
        """The rule as it is stored with a checkpoint, plain values."""
        return {
            "rule": self.rule.name,
            "loops": self.loops,
            "layers": self.layers,
            "strength": self.strength,
            "base_layers": self.base_layers,
            **self.patterns,
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            **self.record(),
            "residual_scale": self.residual_scale,
            "found_by": self.found_by,
            "branches": [{"name": b.name, "layer": b.layer, "once": b.once} for b in self.branches],
            "post_norm": self.post_norm,
            "verified": self.verified,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for branch in self.branches:
            kinds[pattern(branch.name)] = kinds.get(pattern(branch.name), 0) + 1
        rows = [f"  {name}  x {count}" for name, count in kinds.items()]
        head = (
            f"{type(self.model).__name__}: {len(self.branches)} branches in {self.layers} layers, rule {self.rule.name!r}, "
            f"N = {self.loops}: each is multiplied by {self.residual_scale:.4g}"
        )
        notes = [f"found by {self.found_by}; {self.verified}", *(f"warning: {text}" for text in self.warnings)]
        return "\n".join([head, *rows, *notes])


def layer_roles(model: nn.Module, layers: list[str], announce: bool) -> dict[str, Role]:
    """Roles by module and name, those below `layers` being inside; with `announce`, a line for each on stderr."""
    inside = tuple(f"{layer}." if layer else "" for layer in layers)
    roles, unsure = tell_roles(model, [name for name, _ in model.named_parameters() if name.startswith(inside)])
    if announce:
        print("loopscale: roles inferred from modules and names", file=sys.stderr)
        for line in dict.fromkeys(f"  {role.value:12}{pattern(name)}" for name, role in roles.items()):
            print(line, file=sys.stderr)
        if unsure:
            print(f"loopscale: warning: {taken_as_hidden(unsure, 'roles={...}')}", file=sys.stderr)
    return roles


def pattern(name: str) -> str:
    """A name with its numbers starred."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def unfold_first(model: nn.Module) -> None:
    """Take a folded scale out of the weights."""
    folded = vars(model).get("_loopscale_folded")
    if folded is not None:
        folded.unfold()


def refuse_folded(folded: int | None, loops: int) -> None:
    """Raise `UserError` when the scale is in the weights."""
    if folded is not None and loops != folded:
        raise UserError(f"the model is folded for N = {folded}: fold(model, loops={loops}), or unfold(model) first")


def write_record(model: nn.Module, record: dict[str, Any], folded: int | None) -> None:
    """Keep a config that names the rule up to date."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "loopscale", None) is not None:
        config.loopscale = record if folded is None else {**record, "folded": folded}


def attached_to(model: nn.Module) -> Any:
    """The handle of the model or of a part of it, if any."""
    for module in model.modules():
        handle = vars(module).get(PLACE)
        if handle is not None:
            return handle
    return None


def forget(model: nn.Module) -> None:
    """Remove the handle from the model, and the rule from its config."""
    for module in model.modules():
        vars(module).pop(PLACE, None)
    config = getattr(model, "config", None)
    if config is not None:
        vars(config).pop("loopscale", None)


def compare(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `UserError` when a checkpoint was trained under another rule than the one asked for. N may differ."""
    if "folded" in stored:
        raise UserError(
            f"the checkpoint's weights are folded for N = {stored['folded']}, the scale is in them: save it unfolded, "
            "or use it as it is"
        )
    names = ("convert", "start", "stop", "steps", "rule", "layers", "strength", "base_layers")
    for name in names if ("convert" in stored) == ("convert" in wanted) else ():
        if name in stored and stored[name] != wanted[name]:
            raise UserError(
                f"the checkpoint was trained with {name} = {stored[name]!r} and you ask for {wanted[name]!r}: "
                "pass the stored one, or delete model.config.loopscale to start anew"
            )
    if ("convert" in stored) != ("convert" in wanted):
        was = "converted" if "convert" in stored else "attached"
        raise UserError(
            f"the checkpoint was of a model that is {was}: call restore(model), or delete model.config.loopscale"
        )
