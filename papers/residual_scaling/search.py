"""One search over the rate for every study: bracket the optimum on the sqrt(2) grid with one seed, then all seeds there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import kept
from kept import Training

from loopscale.train import make_config
from loopscale.transfer import best_rate, complete, fit_optimum, wanted

Losses = dict[tuple[float, int], float]  # (rate, seed) -> validation loss in nats, inf where it diverged
Make = Callable[[float, int], Training]
K = TypeVar("K")
CENTER, STEPS = 2.0**-5, 100
OUTER_RATES = tuple(
    2.0**k for k in range(-6, 1)
)  # of the pilot, at N = 2 and the hidden rate CENTER, with seeds 0 and 1
SETTING = f"bytes of Python sources, d = 32, 8 sequences of 32, {STEPS} AdamW steps"
FIXED = f"{SETTING}, outer rate fixed"


def with_outer(make: Make, outer: float) -> Make:
    """The same training with the rate of embedding, readout and final norm held at `outer` while the hidden rate moves."""

    def held(rate: float, seed: int) -> Training:
        made = make(rate, seed)
        return Training(made.config.replaced("optim", outer_lr=outer / rate), made.own)

    return held


def base(
    loops: int,
    *,
    rule: str = "looped",
    strength: float = 1.0,
    layers: int = 1,
    width: int = 32,
    steps: int = STEPS,
    batch: int = 8,
    own: str | None = None,
    **optim: Any,
) -> Make:
    """(rate, seed) -> a training; layers count against 1, the width against 32. `own`: a factory, see `kept.Training`."""

    def make(rate: float, seed: int) -> Training:
        model = {"width": width, "head_dim": 16, "layers": layers, "base_layers": 1, "loops": loops}
        if width != 32:
            model["base_width"] = 32
        values = {
            "model": {**model, "rule": rule, "strength": strength},
            "data": {"path": "stdlib", "context": 32, "batch_size": batch},
            "optim": {"optimizer": "adamw", "schedule": "linear", "warmup": 0.1, **optim, "lr": rate},
            "train": {"steps": steps, "eval_batches": 32, "seed": seed, "device": "cpu"},
        }
        return Training(make_config(values), own)

    return make


def fixed(loops: int, **choices: Any) -> Make:
    """What `base` gives, embedding, readout and final norm at the rate that all findings keep."""
    return with_outer(base(loops, **choices), outer_rate())


@cache
def outer_rate() -> float:
    """The outer rate where the pilot's parabola has its minimum; it is found once, at N = 2 and L = 1."""
    arms = {outer: with_outer(base(2), outer) for outer in OUTER_RATES}
    pilot = trained("outer", arms, {outer: [(CENTER, 0), (CENTER, 1)] for outer in arms})
    found = fit_optimum({(outer, seed): loss for outer, known in pilot.items() for (_, seed), loss in known.items()})
    assert found is not None and not found.edge, "the pilot's best outer rate lies at its end: widen OUTER_RATES"
    return found.lr


def trained(study: str, arms: Mapping[K, Make], points: Mapping[K, list[tuple[float, int]]]) -> dict[K, Losses]:
    """The losses of each arm at its points, all trained together."""
    flat = [(arm, point) for arm in arms for point in points[arm]]
    values = kept.losses(study, [arms[arm](*point) for arm, point in flat])
    found: dict[K, Losses] = {arm: {} for arm in arms}
    for (arm, point), loss in zip(flat, values, strict=True):
        found[arm][point] = loss
    return found


def searched(study: str, arms: Mapping[K, Make], seeds: int, train: Any = trained) -> dict[K, Losses]:
    """Each arm's losses around its optimum: five rates over two octaves, all with every seed.

    `train(study, arms, points)` is who trains them.
    """
    found: dict[K, Losses] = {arm: {} for arm in arms}
    while True:
        asked = {arm: wanted(found[arm], seeds, CENTER) for arm in arms}
        if not any(asked.values()):
            return found
        for arm, losses in train(study, arms, asked).items():
            found[arm].update(losses)


def at_best(losses: Losses) -> list[float]:
    """Losses by seed at the rate with the smallest mean over all seeds."""
    return complete(losses)[best_rate(losses)]
