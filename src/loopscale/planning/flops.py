"""Parameters and FLOPs of the house model, every visit counted.

D width, K kv_width, F mlp_width, T context, V vocabulary. A multiply and an add are two FLOPs; attention counts the full
T x T square, as torch's flop counter does (a causal kernel does half of it).
"""

from __future__ import annotations

from loopscale.planning.shape import Shape


def block_parameters(shape: Shape) -> int:
    """Count the matrices of a block: D(D+K) + DK + DD of attention, 3DF of the MLP; and its two gains."""
    D, K, F = shape.width, shape.kv_width, shape.mlp_width
    return D * (D + K) + D * K + D * D + 3 * D * F + 2 * D


def parameters(shape: Shape) -> dict[str, int]:
    """Count the parameters by part; "core" is stored once and visited N times.

    >>> parameters(Shape(vocab_size=17, width=32, kv_width=32, mlp_width=88, layers=2))["total"]
    26336
    """
    block, table = block_parameters(shape), shape.vocab_size * shape.width
    parts = {
        "embedding": table,
        "core": shape.layers * block,
        "prelude and coda": (shape.prelude + shape.coda) * block,
        "readout": shape.width + (0 if shape.tied_readout else table),
    }
    return {**parts, "total": sum(parts.values())}


def forward_flops_per_token(shape: Shape) -> tuple[float, float, float]:
    """Return (matrices of one visit of one block, attention of the same, readout)."""
    D = shape.width
    matrices = 2.0 * (block_parameters(shape) - 2 * D)
    return matrices, 4.0 * shape.context * D, 2.0 * shape.vocab_size * D


def flops_per_token(shape: Shape) -> dict[str, float]:
    """Count the training FLOPs for one token: a backward pass costs two forward passes of what it goes through.

    "model" is what the mathematics needs (the numerator of MFU); "executed" adds what is computed again.

    >>> two, four = (flops_per_token(Shape(loops=n))["model"] for n in (2, 4))
    >>> 1.5 < four / two < 2
    True
    """
    matrices, attention, readout = forward_flops_per_token(shape)
    visit = matrices + attention
    model = visit * (shape.visits + 2 * shape.trained_visits) + 3 * readout
    again = 0.0
    if shape.recompute:
        trained = (shape.trained_visits - shape.prelude - shape.coda) // shape.layers
        visits = trained if shape.extra_visits is None else shape.extra_visits
        # torch stops a recomputation when the last kept tensor is there: before the last product of a segment.
        last = 2.0 * shape.width * shape.mlp_width * -(-trained // shape.recompute)
        again = visit * shape.layers * visits - last
    return {"model": model, "executed": model + again, "forward": visit * shape.visits + readout}
