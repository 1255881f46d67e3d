"""How the core's input e reaches every visit again: values for the config, and the small modules that they build.

With step = 1/N (unit time divided by the visits), before every visit

| kind     | step of the stream                       | parameters                   |
|----------|------------------------------------------|------------------------------|
| none     | x                                        |                              |
| additive | x + step * amount * e                    |                              |
| linear   | x + step * W [x, e]                      | W [D, 2D], as two [D, D]     |
| diagonal | exp(-step * A) x + step * B e, A > 0     | A, B [D]                     |

The same vector is added at every visit, so the sum is perfectly aligned: that is why the step is 1/N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopscale.errors import number
from loopscale.nn.residual import Scale, add_scaled


@dataclass(frozen=True)
class NoInjection:
    """The core sees its input once, at entry."""

    kind: str = "none"

    def build(self, width: int) -> nn.Module | None:
        """Build nothing."""
        return None


@dataclass(frozen=True)
class AdditiveInjection:
    """`x + amount/N * e`: after N visits `amount * e` has been added, whatever N is.

    Raises `UserError` if amount < 0.
    """

    kind: str = "additive"
    amount: float = 1.0

    def __post_init__(self) -> None:
        number("injection.amount", self.amount, 0)

    def build(self, width: int) -> nn.Module | None:
        """Build the module, which has no parameters."""
        return _Additive(self.amount)


@dataclass(frozen=True)
class LinearInjection:
    """`x + 1/N * W [x, e]`: Huginn's adapter on the concatenation, as a step of 1/N instead of a replacement."""

    kind: str = "linear"

    def build(self, width: int) -> nn.Module | None:
        """Build the module for a stream of `width`."""
        return _Linear(width)


@dataclass(frozen=True)
class DiagonalInjection:
    """`exp(-A/N) x + B/N e`, A > 0: contractive, after Parcae (arXiv:2604.12946). `decay` is A and B at the start.

    Raises `UserError` unless 0.02 <= decay <= 10.
    """

    kind: str = "diagonal"
    decay: float = 0.5

    def __post_init__(self) -> None:
        number("injection.decay", self.decay, 0.02, 10)

    def build(self, width: int) -> nn.Module | None:
        """Build the module for a stream of `width`."""
        return _Diagonal(width, self.decay)


Injection = NoInjection | AdditiveInjection | LinearInjection | DiagonalInjection
INJECTIONS: tuple[type[Injection], ...] = (NoInjection, AdditiveInjection, LinearInjection, DiagonalInjection)


FLOOR = 1e-2  # of A = FLOOR + softplus(raw): exp(-A/N) stays below 1 in fp32 up to N = 10^4

# The modules: `source(entry)` is what does not change over visits, computed once; `forward(x, source, step)` injects once.


class _Additive(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def source(self, entry: Tensor) -> Tensor:
        return entry if self.amount == 1 else self.amount * entry

    def forward(self, x: Tensor, source: Tensor, step: Scale) -> Tensor:
        return add_scaled(x, step, source)


class _Linear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stream = nn.Linear(width, width, bias=False)
        self.entry = nn.Linear(width, width, bias=False)

    def source(self, entry: Tensor) -> Tensor:
        fixed: Tensor = self.entry(entry)
        return fixed

    def forward(self, x: Tensor, source: Tensor, step: Scale) -> Tensor:
        return add_scaled(x, step, self.stream(x) + source)


class _Diagonal(nn.Module):
    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        inverse_softplus = math.log(math.expm1(decay - FLOOR))
        self.raw_decay = nn.Parameter(torch.full((width,), inverse_softplus))
        self.drive = nn.Parameter(torch.full((width,), float(decay)))

    def decay(self) -> Tensor:
        return FLOOR + F.softplus(self.raw_decay)

    def source(self, entry: Tensor) -> Tensor:
        return self.drive * entry

    def forward(self, x: Tensor, source: Tensor, step: Scale) -> Tensor:
        return add_scaled(torch.exp(-step * self.decay()) * x, step, source)
