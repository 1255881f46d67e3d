"""The handle of a converted model: the knob for N, what is stored with a checkpoint, and the way back."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

from torch import nn

from loopscale.adapt.core import Core, dismiss
from loopscale.adapt.find import Branch
from loopscale.adapt.handle import forget, layer_roles, refuse_folded, unfold_first, write_record
from loopscale.adapt.hook import Scales, drop_compiled, remove
from loopscale.adapt.tie import Undo
from loopscale.parameterization import Depth, Role, Rule, Width
from loopscale.parameterization.depth import check_strength

Steps = Literal["damped", "even"]


class Conversion:
    """A converted model's handle: `set_loops(n)` at run time, `detach()` or a `with` block's end to take it all back.

    States `roles()`, `depth`, `rule` and `base_layers` for `param_groups`; `str(handle)` is the report.
    """

    def __init__(
        self, model: nn.Module, core: Core, steps: Steps, rule: Rule, strength: float, base_layers: int
    ) -> None:
        self.model = model
        self.core = core
        self.steps = steps
        self.rule = rule
        self.strength = check_strength(strength)
        self.base_layers = base_layers
        self.stack = ""
        self.scales = Scales()
        self.branches: list[Branch] = []
        self.undo = Undo()
        self.tied = "none"
        self.verified = "not verified"
        self.warnings: list[str] = []
        self.width_ratio: Width | None = None
        self.folded: int | None = None
        self._announced = False

    @property
    def depth(self) -> Depth:
        """Loops and unique layers of the core."""
        return Depth(self.core.loops, len(self.core.layers))

    @property
    def loops(self) -> int:
        """N."""
        return self.core.loops

    def step(self, loops: int) -> float:
        """damped: what each of the N - 1 visits after the first is mixed in with; even: eps, the factor on every branch."""
        visits = max(loops - 1, 1) if self.steps == "damped" else loops
        depth = Depth(visits, self.depth.layers)
        eps = self.rule.residual_scale(depth, self.strength, self.base_layers).value
        return eps / self.rule.skip_scale(depth).value

    def set_loops(self, loops: int) -> Conversion:
        """Visit the core this often from now on; a live cache is told at the next call.

        Raises `UserError` when loops < 1.
        """
        Depth(loops, 1)
        refuse_folded(self.folded, loops)
        self.core.loops = loops
        step = self.step(loops)
        self.core.mix = self.scales.tensor(step) if self.steps == "damped" else None
        if self.steps == "even":
            self.scales.core = self.scales.tensor(step)
            self.scales.once = self.scales.tensor(self.step(1))
        self.note()
        return self

    def note(self) -> None:
        """Write what holds now into the model's config."""
        write_record(self.model, self.record(), self.folded)

    def detach(self) -> nn.Module:
        """Take it all back: layers, weights, config and classes are bit-identical to what they were."""
        unfold_first(self.model)
        dismiss(self.core)
        remove(self.model)
        forget(self.model)
        self.undo.run()
        drop_compiled()
        return self.model

    def __enter__(self) -> Conversion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def named_parameters(self) -> Any:
        """Those of the model."""
        return self.model.named_parameters()

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, inferred from its name; printed (stderr) the first time."""
        self._announced, announce = True, not self._announced
        return layer_roles(self.model, [self.stack], announce)

    def record(self) -> dict[str, Any]:
        """What is stored with a checkpoint, plain values; `restore` reads it."""
        first = self.core.first
        return {
            "convert": self.stack,
            "start": first,
            "stop": first + len(self.core.layers),
            "steps": self.steps,
            "rule": self.rule.name,
            "loops": self.loops,
            "layers": self.depth.layers,
            "strength": self.strength,
            "base_layers": self.base_layers,
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        named = {"tied": self.tied, "step": self.step(self.loops), "verified": self.verified}
        return {**self.record(), **named, "warnings": list(self.warnings)}

    def __str__(self) -> str:
        first, layers, total = self.core.first, self.depth.layers, self.core.total
        what = "later visits are mixed in with" if self.steps == "damped" else "every branch is multiplied by"
        return "\n".join(
            [
                f"{type(self.model).__name__}: {self.stack}.{first}..{first + layers - 1} are visited N = {self.loops} "
                f"times; prelude {first}, core {layers}, coda {total - first - layers} layers",
                f"rule {self.rule.name!r}, {self.steps}: {what} {self.step(self.loops):.4g}; {self.tied}",
                self.verified,
                *(f"warning: {text}" for text in self.warnings),
            ]
        )
