"""A training whose work was counted on the model itself, because no formula knows its parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counted:
    """One training of a user model. A row is a sequence, or one item of the batch; `units` of a row are tokens, or rows.

    flops: of forward and backward, for a row. kept_bytes: what the backward pass keeps for a row. widest_bytes: the largest
    of these, whose gradient stands beside it. Counts depend on N, which the model was built with.
    """

    parameters: dict[str, int]
    flops: float
    forward_flops: float
    kept_bytes: float
    widest_bytes: float
    unit: str = "token"
    units: int = 64
    width: int = 64
    batch: int = 16
    steps: int = 300
    optimizer: str = "adamw"
    bf16: bool = False
    sharded: bool = False
    accumulate: int = 1
