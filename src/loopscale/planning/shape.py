"""The house model by formula: parameters, FLOPs and memory, every visit counted.

D width, K kv_width, F mlp_width, T context, V vocabulary. A multiply and an add are two FLOPs; attention counts the full
T x T square, as torch's flop counter does (a causal kernel does half of it). Activations are what the backward pass keeps:
17 D + 6 K + 4 F values a token and visit at most in fp32; with recomputation one stream a segment and the inside of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from loopscale.planning.work import Work


@dataclass(frozen=True, kw_only=True)
class Shape(Work):
    """One training of the house model, a row being a sequence.

    >>> two, four = (Shape(loops=n).flops()["model"] for n in (2, 4))
    >>> 1.5 < four / two < 2
    True
    """

    vocab_size: int = 256
    layers: int = 1
    loops: int = 4
    prelude: int = 0
    coda: int = 0
    kv_width: int = 64
    mlp_width: int = 176
    tied_readout: bool = False
    gradient_visits: int | None = None
    recompute: int = 0
    recompute_keep: int | None = None
    loss_rows: int = 0
    extra_visits: int | None = None  # visits of the core computed again; None: each trained one once

    help: ClassVar[tuple[tuple[str, str, Any], ...]] = (
        ("train.loss_rows", "loss_rows", 256),
        ("train.recompute", "recompute", 1),
        *Work.help,
        ("train.precision", "bf16", True),
    )

    @property
    def trained_loops(self) -> int:
        """Visits of the core that the backward pass goes through."""
        return self.loops if self.gradient_visits is None else min(self.gradient_visits, self.loops)

    def visits(self, loops: int) -> int:
        """Count executions of a block; the prelude is reached along the skip path even without early gradients."""
        return self.prelude + self.coda + self.layers * loops

    def parameters(self) -> dict[str, int]:
        """Count the parameters by part; "core" is stored once and visited N times.

        >>> Shape(vocab_size=17, width=32, kv_width=32, mlp_width=88, layers=2).parameters()["total"]
        26336
        """
        block, table = self._matrices() + 2 * self.width, self.vocab_size * self.width
        parts = {
            "embedding": table,
            "core": self.layers * block,
            "prelude and coda": (self.prelude + self.coda) * block,
            "readout": self.width + (0 if self.tied_readout else table),
        }
        return {**parts, "total": sum(parts.values())}

    def flops(self) -> dict[str, float]:
        """Count the training FLOPs for one token."""
        readout = 2.0 * self.vocab_size * self.width
        visit = 2.0 * self._matrices() + 4.0 * self.units * self.width
        forward, trained = self.visits(self.loops), self.trained_loops
        model = visit * (forward + 2 * self.visits(trained)) + 3 * readout
        again = 0.0
        if self.recompute:
            visits = trained if self.extra_visits is None else self.extra_visits
            # torch stops a recomputation when the last kept tensor is there: before the last product of a segment.
            last = 2.0 * self.width * self.mlp_width * -(-trained // self.recompute)
            again = visit * self.layers * visits - last
        return {"model": model, "executed": model + again, "forward": visit * forward + readout}

    def kept(self, rows: int) -> tuple[float, float]:
        """Count activations; and logits, their log-softmax and their gradient in fp32, of all positions or `loss_rows`."""
        tokens = rows * self.units
        return tokens * self.kept_per_token(), 3 * 4 * min(tokens, self.loss_rows or math.inf) * self.vocab_size

    def kept_per_token(self) -> float:
        """Count the bytes kept for one token: flat per visit, N visits unless they are computed again."""
        kept, trained = self._kept_per_visit(), self.trained_loops
        if not self.recompute:
            return self.visits(trained) * kept
        segments = min(math.ceil(trained / self.recompute), self.recompute_keep or trained)
        return self.visits(min(self.recompute, trained)) * kept + segments * 4 * self.width

    def _matrices(self) -> int:
        """Count the matrices of a block: D(D+K) + DK + DD of attention, 3DF of the MLP."""
        D, K, F = self.width, self.kv_width, self.mlp_width
        return D * (D + K) + D * K + D * D + 3 * D * F

    def _kept_per_visit(self) -> float:
        """Count one visit of one block. fp32 counts 4 bytes a value; under autocast what the matrices see is bf16.

        stream side (fp32): two norms keep input and normed input. matrix side: normed inputs, rotated queries and keys,
        values, attention's output, gate, up, silu(gate), their product, and the two branch outputs.
        """
        D, K, F = self.width, self.kv_width, self.mlp_width
        stream, matrix = 4 * D, 4 * D + 3 * K + 4 * F
        return 4.0 * stream + (2.0 if self.bf16 else 4.0) * matrix
