"""Made-up studies with the noise of real ones: seeds move whole curves, and the same way at neighbouring N.

loss = floor + a_s + b_{s,N} z + (curve + q_{s,N}) z^2 + sigma e,   z = log2 rate - x0(N),   x0(N) = start + drift log2 N

The sizes were read off records/paper/15.json and 19.json (d = 32) and records/transfer_laptop.json (d = 64): one seed's
slopes b at two N have a correlation near 0.6, and far more variance than independent trials would give them.
"""

import math
from dataclasses import dataclass

from loopscale.transfer import Curves, best_rate, wanted

CORRELATION = 0.6


@dataclass(frozen=True)
class Noise:
    """Standard deviations: of a trial (nats), of a seed's slope (nats per octave) and bend (per octave^2)."""

    sigma: float
    slope: float
    bend: float
    curve: float
    offset: float = 0.02


D64 = Noise(0.0072, 0.0032, 0.0102, 0.048)  # the laptop record of 2026-11-24, `looped`
D64_NONE = Noise(0.0134, 0.0246, 0.0096, 0.045)  # and `none`
D32 = Noise(0.0076, 0.0182, 0.0173, 0.0425)  # prediction 15, 16 seeds
INDEPENDENT = Noise(0.0085, 0.0, 0.0, 0.048)


class World:
    """The losses of one study, drawn when asked for."""

    def __init__(self, rng, noise, loops, seeds, drift=0.0):
        self.rng, self.noise, self.known = rng, noise, {}
        start = rng.uniform(-6.5, -6.0)
        self.bottom = {n: start + drift * math.log2(n) for n in loops}
        self.offset = noise.offset * rng.standard_normal(seeds)
        both = rng.standard_normal((2, seeds))
        mix, rest = math.sqrt(CORRELATION), math.sqrt(1 - CORRELATION)
        own = {n: mix * both + rest * rng.standard_normal((2, seeds)) for n in loops}
        self.slope = {n: noise.slope * own[n][0] for n in loops}
        self.bend = {n: noise.bend * own[n][1] for n in loops}

    def mean(self, n, rate):
        return 2.3 + self.noise.curve * (math.log2(rate) - self.bottom[n]) ** 2

    def loss(self, n, rate, seed):
        if (n, rate, seed) not in self.known:
            z = max(-3.0, min(3.0, math.log2(rate) - self.bottom[n]))
            seeds_own = self.offset[seed] + self.slope[n][seed] * z + self.bend[n][seed] * z * z
            self.known[n, rate, seed] = self.mean(n, rate) + seeds_own + self.noise.sigma * self.rng.standard_normal()
        return self.known[n, rate, seed]


def study(world, loops, seeds, spacing=1):
    """loops -> the losses that `loopscale transfer` would have asked for."""
    found = {}
    for n in sorted(loops):
        known = {}
        while asked := wanted(known, seeds, 2.0**-6, spacing=spacing):
            known.update({(rate, seed): world.loss(n, rate, seed) for rate, seed in asked})
        found[n] = known
    tuned = best_rate(found[min(loops)])
    for n, known in found.items():
        known.update({(tuned, seed): world.loss(n, tuned, seed) for seed in range(seeds) if (tuned, seed) not in known})
    return found


def curves(world, loops, seeds, spacing=1):
    """The study read by the package."""
    return Curves.fit(study(world, loops, seeds, spacing))


def regret_of(world, losses, loops):
    """What the rate tuned at the smallest N truly costs at the largest."""
    return world.mean(max(loops), best_rate(losses[min(loops)])) - 2.3
