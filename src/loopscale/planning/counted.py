"""A training whose work was counted on the model itself, because no formula knows its parts."""

from __future__ import annotations

from dataclasses import dataclass

from loopscale.planning.work import Work


@dataclass(frozen=True, kw_only=True)
class Counted(Work):
    """One training of a user model; counts depend on N, which the model was built with.

    row_flops and forward_flops: of a row, forward and backward, and forward alone. kept_bytes: what the backward pass keeps
    for a row. widest_bytes: the largest of these, whose gradient stands beside it.
    """

    counts: dict[str, int]
    row_flops: float
    forward_flops: float
    kept_bytes: float
    widest_bytes: float

    def parameters(self) -> dict[str, int]:
        """Give what was counted."""
        return self.counts

    def flops(self) -> dict[str, float]:
        """Give what was counted, for one unit; nothing is computed again."""
        each = self.row_flops / self.units
        return {"model": each, "executed": each, "forward": self.forward_flops / self.units}

    def kept(self, rows: int) -> tuple[float, float]:
        """Give what the backward pass keeps, and the gradient of the largest of it."""
        return rows * self.kept_bytes, rows * self.widest_bytes
