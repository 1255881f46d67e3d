"""One training as the planner prices it, whoever wrote the model: what it takes, and what would make it take less."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Work(ABC):
    """A training. `batch` counts rows a step over all devices; names as in the config file.

    `context` is the tokens of a row, None where nobody knows what its tokens are: then work is counted by rows. `help`:
    the (config key, field, value) that are tried in their order where the training does not fit.
    """

    width: int = 64
    context: int | None = 64
    batch: int = 16
    steps: int = 300
    optimizer: str = "adamw"
    bf16: bool = False
    sharded: bool = False
    accumulate: int = 1

    help: ClassVar[tuple[tuple[str, str, Any], ...]] = (("train.strategy", "sharded", True),)

    @property
    def unit(self) -> str:
        """What FLOPs and speed count: tokens, or rows of the batch."""
        return "row" if self.context is None else "token"

    @property
    def units(self) -> int:
        """How many units a row has."""
        return self.context or 1

    @abstractmethod
    def parameters(self) -> dict[str, int]:
        """Count the parameters by part, and in "total"."""

    @abstractmethod
    def flops(self) -> dict[str, float]:
        """Count the training FLOPs for one unit: a backward pass costs two forward passes of what it goes through.

        "model" is what the mathematics needs (the numerator of MFU); "executed" adds what is computed again; "forward" is
        the forward pass alone.
        """

    @abstractmethod
    def kept(self, rows: int) -> tuple[float, float]:
        """Count the bytes of so many rows at the worst moment: kept for the backward pass, and of the logits."""


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


MOMENTS = {"adamw": 2, "muon": 2, "sgd": 1}  # tensors like the weights that the optimizer keeps (Muon: at most)
RUNTIME = 1.5e9  # bytes: the CUDA context, libraries and fragmentation of one device. Assumption.


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    runtime: float = RUNTIME

    @property
    def total(self) -> float:
        """Return the sum of the parts."""
        return float(sum(asdict(self).values()))


def memory(work: Work, devices: int) -> Memory:
    """Return what one of `devices` holds at the worst moment of a step. At least one row per device is assumed."""
    count, share = work.parameters()["total"], devices if work.sharded else 1
    gathered = count * (2 if work.bf16 else 4) if work.sharded and devices > 1 else 0
    activations, logits = work.kept(math.ceil(work.batch / (devices * work.accumulate)))
    return Memory(
        weights=4 * count / share,
        gradients=4 * count / share + (4 * count if gathered else 0),
        optimizer=4 * MOMENTS[work.optimizer] * count / share,
        gathered=gathered,
        activations=activations,
        logits=logits,
    )
