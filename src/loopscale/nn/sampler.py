"""How many loops a training step makes: values whose draw is a function of seed and step alone, so a resume repeats it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loopscale.errors import UserError, number


@dataclass(frozen=True)
class FixedLoops:
    """`model.loops` at every step."""

    kind: str = "fixed"

    def draw(self, step: int, steps: int, seed: int, loops: int) -> int:
        """Return N of the 0-based `step`; `loops` is the model's."""
        return loops


@dataclass(frozen=True)
class UniformLoops:
    """Every whole number from `least` to `most` alike. Raises `UserError` unless 1 <= least <= most.

    >>> UniformLoops(least=2, most=6).draw(step=0, steps=100, seed=0, loops=4)
    3
    """

    kind: str = "uniform"
    least: int = 1
    most: int = 8

    def __post_init__(self) -> None:
        number("sampler.least", self.least, 1, whole=True)
        number("sampler.most", self.most, self.least, whole=True)

    def draw(self, step: int, steps: int, seed: int, loops: int) -> int:
        """Return N of the 0-based `step`."""
        return int(_generator(seed, step).integers(self.least, self.most + 1))


@dataclass(frozen=True)
class PoissonLoops:
    """Log-normal Poisson: N = 1 + Poisson(r), log r normal with deviation `sigma`, E[N] = `mean`; drawn again above `most`.

    The heavy upper tail of Huginn (arXiv:2502.05171). The truncation lowers the mean a little.

    Raises `UserError` unless mean > 1, 0 <= sigma <= 2 and most >= mean.
    """

    kind: str = "poisson"
    mean: float = 4.0
    sigma: float = 0.5
    most: int = 32

    def __post_init__(self) -> None:
        number("sampler.mean", self.mean, 1)
        if self.mean == 1:
            raise UserError("sampler.mean must be above 1, got 1: use sampler = 'fixed' with loops = 1")
        number("sampler.sigma", self.sigma, 0, 2)
        number("sampler.most", self.most, math.ceil(self.mean), whole=True)

    def draw(self, step: int, steps: int, seed: int, loops: int) -> int:
        """Return N of the 0-based `step`."""
        generator = _generator(seed, step)
        while True:
            rate = (self.mean - 1) * math.exp(self.sigma * generator.standard_normal() - self.sigma**2 / 2)
            drawn = 1 + int(generator.poisson(rate))
            if drawn <= self.most:
                return drawn


@dataclass(frozen=True)
class GrowLoops:
    """A schedule: `stages` are (fraction of training, loops from there on), for example ((0, 2), (0.7, 8)).

    Raises `UserError` unless the fractions start at 0, rise and stay below 1.
    """

    kind: str = "grow"
    stages: tuple[tuple[float, int], ...] = ((0.0, 2), (0.7, 8))

    def __post_init__(self) -> None:
        try:
            stages = tuple((float(at), loops) for at, loops in self.stages)
        except (TypeError, ValueError):
            raise UserError(f"sampler.stages must be pairs [fraction, loops], got {self.stages!r}") from None
        object.__setattr__(self, "stages", stages)
        starts = [at for at, _ in stages]
        if not stages or starts[0] != 0 or starts != sorted(set(starts)) or not starts[-1] < 1:
            raise UserError(f"sampler.stages must start at fraction 0 and rise, below 1, got {starts}")
        for _, loops in stages:
            number("loops in sampler.stages", loops, 1, whole=True)

    def draw(self, step: int, steps: int, seed: int, loops: int) -> int:
        """Return N of the 0-based `step` of `steps`."""
        return [count for at, count in self.stages if step >= round(at * steps)][-1]


Sampler = FixedLoops | UniformLoops | PoissonLoops | GrowLoops
SAMPLERS: tuple[type[Sampler], ...] = (FixedLoops, UniformLoops, PoissonLoops, GrowLoops)


def _generator(seed: int, step: int) -> np.random.Generator:
    # The third number keeps this stream apart from others that start from seed and step.
    return np.random.default_rng([seed, step, 0x100B])
