"""How deep a looped network is, and how strongly each residual branch may speak."""

from __future__ import annotations

from dataclasses import dataclass

from loopscale.errors import UserError, number, spelt


@spelt
@dataclass(frozen=True)
class Depth:
    """`loops` (N): how often the stack is applied. `layers` (L): how many unique layers the stack has.

    Attention and MLP are two branches of *one* layer: L counts layers.

    Raises `UserError` when either is not a whole number of at least 1.

    >>> Depth(loops=8, layers=4).executed
    32
    """

    loops: int
    layers: int

    def __post_init__(self) -> None:
        number("loops", self.loops, 1, whole=True)
        number("layers", self.layers, 1, whole=True)

    @property
    def executed(self) -> int:
        """Layers executed in one forward pass, N * L (E in DeepNorm's formulas)."""
        return self.loops * self.layers


@spelt
@dataclass(frozen=True)
class Width:
    """The muP width ratio m_d = width / base_width; without a base width no width rule applies (m_d = 1).

    Raises `UserError` when a width is not a whole number of at least 1.

    >>> Width(512, base_width=128).ratio
    4.0
    """

    width: int
    base_width: int | None = None

    def __post_init__(self) -> None:
        number("width", self.width, 1, whole=True)
        if self.base_width is not None:
            number("base_width", self.base_width, 1, whole=True)

    @property
    def ratio(self) -> float:
        """m_d; 1.0 without a base width."""
        return 1.0 if self.base_width is None else self.width / self.base_width


def relative_layers(depth: Depth, base_layers: int | None) -> float:
    """Return m_L = L / L_base. Without `base_layers` L counts absolutely (m_L = L).

    Raises `UserError` when `depth` is no `Depth`, or `base_layers` not a whole number of at least 1.
    """
    if not isinstance(depth, Depth):
        raise UserError(f"depth must be a Depth, got {depth!r}: such as residual_scale(Depth(loops=8, layers=4))")
    if base_layers is None:
        return float(depth.layers)
    return depth.layers / Depth(1, base_layers).layers


def check_strength(strength: float) -> float:
    """Return lambda unchanged; raise `UserError` unless it is a finite number of at least 0."""
    return float(number("strength", strength, 0))
