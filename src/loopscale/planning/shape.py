"""The numbers of a training that decide what it costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One training of the house model. `batch` counts sequences a step over all devices; names as in the config file."""

    vocab_size: int = 256
    width: int = 64
    layers: int = 1
    loops: int = 4
    prelude: int = 0
    coda: int = 0
    kv_width: int = 64
    mlp_width: int = 176
    tied_readout: bool = False
    gradient_visits: int | None = None
    context: int = 64
    batch: int = 16
    steps: int = 300
    optimizer: str = "adamw"
    bf16: bool = False
    sharded: bool = False
    accumulate: int = 1
    recompute: int = 0
    recompute_keep: int | None = None
    loss_rows: int = 0
    extra_visits: int | None = None  # visits of the core computed again; None: each trained one once

    @property
    def visits(self) -> int:
        """Executions of a block in one forward pass: prelude, coda, and each layer of the core N times."""
        return self.prelude + self.coda + self.layers * self.loops

    @property
    def trained_visits(self) -> int:
        """Those that the backward pass goes through."""
        kept = self.loops if self.gradient_visits is None else min(self.gradient_visits, self.loops)
        # The prelude is reached along the skip path also when early visits get no gradient.
        return self.prelude + self.coda + self.layers * kept
