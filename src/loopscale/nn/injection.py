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
from typing import ClassVar

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
        return Additive(self.amount)


@dataclass(frozen=True)
class LinearInjection:
    """`x + 1/N * W [x, e]`: Huginn's adapter on the concatenation, as a step of 1/N instead of a replacement."""

    kind: str = "linear"

    def build(self, width: int) -> nn.Module | None:
        """Build the module for a stream of `width`."""
        return Linear(width)


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
        return Diagonal(width, self.decay)


Injection = NoInjection | AdditiveInjection | LinearInjection | DiagonalInjection
INJECTIONS: tuple[type[Injection], ...] = (NoInjection, AdditiveInjection, LinearInjection, DiagonalInjection)


class Additive(nn.Module):
    """See the table above."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def source(self, entry: Tensor) -> Tensor:
        """Compute what does not change over visits."""
        return entry if self.amount == 1 else self.amount * entry

    def forward(self, x: Tensor, source: Tensor, step: Scale) -> Tensor:
        """Inject once; `source` comes from the method of that name."""
        return add_scaled(x, step, source)


class Linear(nn.Module):
    """See the table above. W e is computed once, not once per visit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stream = nn.Linear(width, width, bias=False)
        self.entry = nn.Linear(width, width, bias=False)

    def source(self, entry: Tensor) -> Tensor:
        """Compute what does not change over visits."""
        fixed: Tensor = self.entry(entry)
        return fixed

    def forward(self, x: Tensor, source: Tensor, step: Scale) -> Tensor:
        """Inject once; `source` comes from the method of that name."""
        return add_scaled(x, step, self.stream(x) + source)


class Diagonal(nn.Module):
    """See the table above. A = FLOOR + softplus(raw) stays far enough from 0 for exp(-A/N) < 1 in fp32 up to N = 10^4."""

    FLOOR: ClassVar[float] = 1e-2

    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        inverse_softplus = math.log(math.expm1(decay - self.FLOOR))
        self.raw_decay = nn.Parameter(torch.full((width,), inverse_softplus))
        self.drive = nn.Parameter(torch.full((width,), float(decay)))

    def decay(self) -> Tensor:
        """Give A, [D], positive."""
        return self.FLOOR + F.softplus(self.raw_decay)

    def source(self, entry: Tensor) -> Tensor:
        """Compute what does not change over visits."""
        return self.drive * entry

    def forward(self, x: Tensor, source: Tensor, step: Scale) -> Tensor:
        """Inject once; `source` comes from the method of that name."""
        return add_scaled(torch.exp(-step * self.decay()) * x, step, source)
