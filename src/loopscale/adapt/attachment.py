"""The handle of an attached model: which branches were found, how often each is visited, and by what it is multiplied."""

from __future__ import annotations

from typing import Any

from torch import nn

from loopscale.adapt.branch_hook import install
from loopscale.adapt.branches import Branch
from loopscale.adapt.handle import Handle, Scaling, starred
from loopscale.parameterization import Depth


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

    @property
    def depth(self) -> Depth:
        """N and L as the diagnosis counts them."""
        return self._depth

    def recount(self, branches: list[Branch], depth: Depth) -> None:
        """Take over what a pass showed."""
        self.branches, self._depth = branches, depth

    def install(self) -> None:
        """Put a hook on every branch."""
        for branch in self.branches:
            install(self.model.get_submodule(branch.name))
        self.enter()
        self.set_loops(self.loops)

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
