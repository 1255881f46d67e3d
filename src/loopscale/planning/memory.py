"""Memory of one device by part, in bytes. Weights, gradients and moments are fp32."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from loopscale.planning.work import Work

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
