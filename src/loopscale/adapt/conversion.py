"""The handle of a converted model: which layers are the core, how its visits are taken, and the way back."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from loopscale.adapt.handle import Handle, Scaling
from loopscale.adapt.looped_layers import Core
from loopscale.parameterization import Depth

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
