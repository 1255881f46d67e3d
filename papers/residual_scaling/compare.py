"""All rules of the conformance table, and learned gates, on one footing: tuned at few loops, carried, and tuned there.

At one layer `none`, `sqrt` and `looped` are one family: eps is a number, and each rule only says how it follows N. So
tuned at one N they are the same network, at strengths that differ by a power of N; what tells them apart is carrying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from outcome import Table, over_seeds
from search import Losses, Make, at_best, base, searched, trained

import loopscale as ls
from loopscale.transfer import best_rate

SMALL, LARGE, LAYERS, SEEDS, STEPS = 2, 32, 1, 3, 300
STRENGTHS = (0.5, 1.0, 2.0)
# Gates replace the strength: they learn it.
GATES = {
    "learned scalar, from 0 (ReZero)": "rezero",
    "learned diagonal, from 0.1 (LayerScale)": "layerscale",
    "learned scalar a visit, from 1/N": "visit_gates",
}
OUTER = "`looped`, embedding and readout at 4 times the rate"
Arm = Callable[[int, float], Make]  # (loops, strength) -> training


@dataclass(frozen=True)
class Tuned:
    """An arm's best strength (None: it has none) at one N, and the losses around its best rate there, all seeds."""

    strength: float | None
    losses: Losses

    def __str__(self) -> str:
        rate = f"rate 2^{math.log2(best_rate(self.losses)):.1f}"
        return rate if self.strength is None else f"strength {self.strength:.3g}, {rate}"


def arms() -> dict[str, Arm]:
    """By name; every one that is a network of its own, `looped` for its family."""

    def rule(name: str, own: str | None, loops: int, strength: float) -> Make:
        return base(loops, rule=name, strength=strength, layers=LAYERS, steps=STEPS, own=own and f"variants.py:{own}")

    others = [name for name in ls.RULES if name not in family()]
    return {
        "`looped`": partial(rule, "looped", None),
        **{f"`{name}`": partial(rule, name, None) for name in others},
        OUTER: partial(rule, "looped", "outer_rate"),
        **{name: partial(rule, "none", own) for name, own in GATES.items()},
    }


def family() -> dict[str, float]:
    """The rules that give one layer a number eps = strength / N^a and nothing else that follows N -> a."""
    return {
        name: rule.loops_exponent
        for name, rule in ls.RULES.items()
        if rule.keeps_start and rule.rate_loops_exponent == 0
    }


def tuned(loops: int, start: Mapping[str, float]) -> dict[str, Tuned]:
    """Every arm at this N. The search over its strength begins around `start`."""
    chosen, makers = strengths_of(loops, start), arms()
    curves = searched("rules", {name: makers[name](loops, chosen.get(name, 1.0)) for name in makers}, SEEDS)
    return {name: Tuned(chosen.get(name), curves[name]) for name in makers}


def strengths_of(loops: int, start: Mapping[str, float]) -> dict[str, float]:
    """Each arm's best strength with one seed: factor-2 steps, on as long as the best lies at an end. Gates have none."""
    makers = {name: maker for name, maker in arms().items() if name not in GATES}
    asked = {name: [start.get(name, 1.0) * factor for factor in STRENGTHS] for name in makers}
    found: dict[tuple[str, float], float] = {}
    while True:
        new = {
            (name, lam): makers[name](loops, lam) for name in makers for lam in asked[name] if (name, lam) not in found
        }
        if not new:
            return {name: min(tried, key=lambda lam: found[name, lam]) for name, tried in asked.items()}
        found.update({key: min(losses.values()) for key, losses in searched("rules", new, 1).items()})
        for name, tried in asked.items():
            best = min(tried, key=lambda lam: found[name, lam])
            if best in (min(tried), max(tried)) and 2**-9 < best < 2**5:
                tried.append(best / 2 if best == min(tried) else best * 2)


def carried(small: Mapping[str, Tuned]) -> dict[str, list[float]]:
    """Losses by seed at N = LARGE with the strength and rate of `small`, for every rule and gate by its own law of N."""
    makers = arms()
    trainings = {name: makers[name](LARGE, found.strength or 1.0) for name, found in small.items()}
    for name, power in family().items():
        strength = (small["`looped`"].strength or 1.0) * SMALL ** (power - 1)
        trainings[f"`{name}`"] = base(LARGE, rule=name, strength=strength, layers=LAYERS, steps=STEPS)
    rates = {name: best_rate(small.get(name, small["`looped`"]).losses) for name in trainings}
    points = {name: [(rates[name], seed) for seed in range(SEEDS)] for name in trainings}
    return {name: list(losses.values()) for name, losses in trained("rules", trainings, points).items()}


def table() -> Table:
    """A row a rule: tuned at N = SMALL, carried to N = LARGE, and tuned there."""
    small = tuned(SMALL, {})
    large = tuned(LARGE, {name: found.strength for name, found in small.items() if found.strength})
    shots = carried(small)
    shots = dict(sorted(shots.items(), key=lambda item: np.mean(item[1])))
    reference = at_best(large["`looped`"].losses)
    rows = [_row(name, shot, small, large, reference) for name, shot in shots.items()]
    sentence = (
        f"Tuned at N = {SMALL}, carried to N = {LARGE}, and tuned again there: validation loss in nats. Strengths by one "
        f"seed in factor-2 steps, rates on a sqrt(2) grid, {SEEDS} seeds, differences paired over them. All have the same "
        f"compute and, but for the gates, the same parameters. At one layer {_listed(family())} are one network at any "
        "one N, so they share what is tuned and differ in how they carry it."
    )
    setting = f"bytes of Python sources, d = 32, L = {LAYERS}, 8 sequences of 32, {STEPS} AdamW steps"
    return Table("rules", sentence, rows, setting)


def _row(
    name: str, shot: list[float], small: Mapping[str, Tuned], large: Mapping[str, Tuned], reference: list[float]
) -> dict[str, str]:
    mine = name if name in small else "`looped`"
    best = at_best(large[mine].losses)
    return {
        "rule": name,
        f"loss at N = {SMALL}": f"{np.mean(at_best(small[mine].losses)):.3f}",
        f"best at N = {SMALL}": str(small[mine]) if mine == name else "as `looped`",
        f"loss at N = {LARGE}, carried": _loss(shot),
        f"loss at N = {LARGE}, tuned there": f"{np.mean(best):.3f}",
        f"best at N = {LARGE}": str(large[mine]) if mine == name else "as `looped`",
        f"regret of carrying [95 % interval], n = {SEEDS}": _gap(shot, best),
        f"tuned there, minus `looped` [95 % interval], n = {SEEDS}": ""
        if mine == "`looped`"
        else _gap(best, reference),
    }


def _loss(losses: list[float]) -> str:
    lost = sum(not math.isfinite(loss) for loss in losses)
    return f"{lost} of {len(losses)} diverged" if lost else f"{np.mean(losses):.3f}"


def _gap(losses: list[float], others: list[float]) -> str:
    if not all(map(math.isfinite, losses + others)):
        return "diverged"
    gap = over_seeds("", [a - b for a, b in zip(losses, others, strict=True)], (0.0, 0.0))
    return f"{gap.value:+.3f} [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]"


def _listed(names: Mapping[str, float]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}"
