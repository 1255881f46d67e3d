"""The shape of a looped Transformer, validated where it is stated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from loopscale.errors import UserError
from loopscale.parameterization import Depth, Width, get_rule, relative_layers
from loopscale.parameterization.depth import check_strength


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer: prelude -> core (`layers`, looped `loops` times) -> coda -> readout.

    `width` is the stream's; `head_dim` stays fixed while width grows. `kv_heads` < heads gives grouped-query attention.
    `mlp_ratio` is hidden / width of the SwiGLU. `rule`, `strength`, `base_layers`, `base_width` are the parameterization.

    Raises `UserError` for any value that makes no network.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int = 256
    width: int = 64
    layers: int = 1
    loops: int = 4
    prelude: int = 0
    coda: int = 0
    head_dim: int = 32
    kv_heads: int | None = None
    mlp_ratio: float = 8 / 3
    qk_norm: bool = False
    tied_readout: bool = False
    rule: str = "looped"
    strength: float = 1.0
    base_layers: int | None = None
    base_width: int | None = None
    gradient_visits: int | None = None

    def __post_init__(self) -> None:
        Depth(self.loops, self.layers)
        for name in ("vocab_size", "width", "head_dim"):
            _positive(name, getattr(self, name))
        for name in ("prelude", "coda"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        if self.width % self.head_dim:
            raise UserError(f"width {self.width} is not a multiple of head_dim {self.head_dim}: change one of them")
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(f"kv_heads {self.kv_heads} must divide the {self.heads} heads (width / head_dim)")
        if not math.isfinite(self.mlp_ratio) or self.mlp_ratio <= 0:
            raise UserError(f"mlp_ratio must be a positive number, got {self.mlp_ratio!r}")
        if self.gradient_visits is not None:
            _positive("gradient_visits", self.gradient_visits)
        get_rule(self.rule)
        check_strength(self.strength)
        relative_layers(self.depth, self.base_layers)
        Width(self.width, self.base_width)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // self.head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU, rounded up to a multiple of 8."""
        return 8 * math.ceil(self.width * self.mlp_ratio / 8)

    @property
    def depth(self) -> Depth:
        """Loops and layers of the core."""
        return Depth(self.loops, self.layers)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value!r}")
