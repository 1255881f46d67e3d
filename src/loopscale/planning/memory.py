"""Memory of one device by part, in bytes.

Weights, gradients and moments are fp32. Activations count what the backward pass keeps, for the rows that go through a
device at once: 17 D + 6 K + 4 F values a token and visit at most in fp32, see `_kept_per_token`; with recomputation one
stream a segment and the inside of one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from loopscale.planning.counted import Counted
from loopscale.planning.flops import parameters
from loopscale.planning.shape import Shape

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


def memory(shape: Shape, devices: int) -> Memory:
    """Return what one of `devices` holds at the worst moment of a step. At least one row per device is assumed."""
    rows = math.ceil(shape.batch / (devices * shape.accumulate))
    activations = rows * shape.context * activation_bytes_per_token(shape)
    # logits, their log-softmax and their gradient, in fp32; all positions, or as many as the loss takes at a time
    logits = 3 * 4 * min(rows * shape.context, shape.loss_rows or math.inf) * shape.vocab_size
    return _memory(shape, devices, parameters(shape)["total"], activations, logits)


def counted_memory(work: Counted, devices: int) -> Memory:
    """Return the same for a counted training: what it keeps, and the gradient of the largest of it."""
    rows = math.ceil(work.batch / (devices * work.accumulate))
    return _memory(work, devices, work.parameters["total"], rows * work.kept_bytes, rows * work.widest_bytes)


def _memory(shape: Shape | Counted, devices: int, count: int, activations: float, logits: float) -> Memory:
    share = devices if shape.sharded else 1
    gathered = count * (2 if shape.bf16 else 4) if shape.sharded and devices > 1 else 0
    return Memory(
        weights=4 * count / share,
        gradients=4 * count / share + (4 * count if gathered else 0),
        optimizer=4 * MOMENTS[shape.optimizer] * count / share,
        gathered=gathered,
        activations=activations,
        logits=logits,
    )


def activation_bytes_per_token(shape: Shape) -> float:
    """Return the bytes kept for the backward pass of one token: flat per visit, N visits unless they are computed again."""
    kept, stream = _kept_per_token(shape), 4 * shape.width
    outer = (shape.prelude + shape.coda) * kept
    trained = (shape.trained_visits - shape.prelude - shape.coda) // shape.layers
    if not shape.recompute:
        return outer + trained * shape.layers * kept
    segments = min(math.ceil(trained / shape.recompute), shape.recompute_keep or trained)
    return outer + segments * stream + min(shape.recompute, trained) * shape.layers * kept


def _kept_per_token(shape: Shape) -> float:
    """Return one visit of one block. fp32 counts 4 bytes a value; under autocast what the matrices see is bf16.

    stream side (fp32): two norms keep input and normed input. matrix side: normed inputs, rotated queries and keys, values,
    attention's output, gate, up, silu(gate), their product, and the two branch outputs.
    """
    D, K, F = shape.width, shape.kv_width, shape.mlp_width
    stream, matrix = 4 * D, 4 * D + 3 * K + 4 * F
    return 4.0 * stream + (2.0 if shape.bf16 else 4.0) * matrix
