"""From optima to a verdict: the slope of the optimum over loops, the one-shot regret, the sentences, what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from loopscale.records import Estimate
from loopscale.transfer.estimate import along_loops, over_seeds
from loopscale.transfer.optimum import Losses, Optimum, complete

SLOPE_TOLERANCE = 0.15  # octaves of rate per doubling of loops: from N = 1 to 16 less than a factor 1.5
REGRET_TOLERANCE = 0.01  # nats

Verdict = Literal["transfers", "drifts", "undecided"]


def fit_slope(optima: Mapping[int, Optimum]) -> Estimate | None:
    """Fit log2 of the best rate over log2 loops by least squares, for each seed.

    Returns None with fewer than two loops or an unbracketed optimum.
    """
    if len(optima) < 2 or any(optimum.edge for optimum in optima.values()):
        return None
    return along_loops({n: (optimum.log2_lr, optimum.shifts) for n, optimum in optima.items()})


def one_shot_regret(losses: Losses, optimum: Optimum, tuned: float) -> Estimate | None:
    """Estimate what the rate `tuned` at the smallest N costs at the largest, against the fitted optimum, in nats.

    Beyond the fitted rates the measured loss counts, else the parabolas. Near the optimum their noise cancels to first
    order, so the upper end adds the second: curvature * h^2, where h is the error of the optimum's own place.

    Returns None when the tuned rate diverged, or was trained with fewer seeds than the optimum.
    """
    measured = [losses.get((tuned, seed), math.inf) for seed in range(optimum.n_seeds)]
    if not all(map(math.isfinite, measured)):
        return None
    offset = math.log2(tuned) - optimum.log2_lr
    low, high = optimum.reach
    if optimum.edge or not low - 1e-9 <= math.log2(tuned) <= high + 1e-9:
        return over_seeds([loss - best for loss, best in zip(measured, optimum.losses, strict=True)])
    costs = optimum.parabolas[:, 0] * offset**2 + optimum.parabolas[:, 1] * offset
    plain = over_seeds(costs.tolist())
    if plain.interval is None:
        return plain
    above = optimum.curve * over_seeds(optimum.shifts).error ** 2
    return plain.model_copy(update={"interval": (plain.interval[0], plain.interval[1] + above)})


def judge(slope: Estimate | None, regret: Estimate | None) -> Verdict:
    """Decide between three verdicts; `regret` None: the tuned rate diverged.

    transfers: the slope's interval lies within its tolerance and the regret's ends below its own, so both are shown to be
    small. drifts: the tuned rate diverges, or certainly costs more than the tolerance, or the slope is certainly not 0 and
    its estimate lies outside the tolerance. Everything else is undecided, and so is all that one seed says.
    """
    if slope is None or slope.interval is None:
        return "undecided"
    if regret is None:
        return "drifts"
    low, high = regret.ends
    if low > REGRET_TOLERANCE or (slope.moves and abs(slope.value) > SLOPE_TOLERANCE):
        return "drifts"
    still = -SLOPE_TOLERANCE <= slope.interval[0] and slope.interval[1] <= SLOPE_TOLERANCE
    return "transfers" if still and high <= REGRET_TOLERANCE else "undecided"


def sentence(
    rule: str,
    verdict: Verdict,
    slope: Estimate | None,
    regret: Estimate | None,
    optima: Mapping[int, Optimum],
    why_open: str = "",
) -> str:
    """Say the verdict on one rule, then its numbers; `why_open` is what `unbracketed` says."""
    first, last = min(optima), max(optima)
    trend = f"Loss at its best rate: {optima[first].loss:.3f} at N = {first}, {optima[last].loss:.3f} at N = {last}."
    if slope is None:
        return f"{rule}: undecided, the optimum is not bracketed{why_open}. {trend}"
    says = {
        "transfers": "the best learning rate stands still",
        "drifts": "the best learning rate drifts",
        "undecided": "the data do not decide whether the best learning rate moves"
        + (f" by more than {SLOPE_TOLERANCE} octaves" if slope.moves else ""),
    }[verdict]
    if slope.interval is None:
        says = "undecided, one seed cannot show noise"
    moved = f"Per doubling of loops it moves by {slope.value:+.2f} octaves{slope.within('+.2f')}."
    cost = "diverges" if regret is None else f"costs {max(0.0, regret.value):.3f} nats{regret.within('.3f')}"
    return f"{rule}: {says}. {moved} The rate tuned at N = {first} {cost} at N = {last}. {trend}"


def unbracketed(losses: Mapping[int, Losses], optima: Mapping[int, Optimum]) -> str:
    """Say at which N the best rate lies at which end of what was tried, and what to add; nothing where none does."""
    places: dict[str, list[int]] = {}
    for loops, optimum in optima.items():
        if not optimum.edge:
            continue
        tried = {rate for rate, _ in losses[loops]}
        trained = {rate for (rate, _), loss in losses[loops].items() if math.isfinite(loss)}
        best = min(trained, key=lambda rate: abs(math.log2(rate) - optimum.log2_lr))
        if best == max(trained) and len(tried) > 2:
            diverged = best < max(tried)
            kind = "the largest that trained: add rates near it" if diverged else "the largest tried: add larger ones"
        elif best == min(trained) and len(tried) > 2:
            kind = "the smallest tried: add smaller ones"
        elif len(complete(losses[loops])) > 2:
            kind = "on a curve without a minimum: add rates or seeds"
        else:
            kind = "among too few to fit a parabola: add rates or seeds"
        places.setdefault(kind, []).append(loops)
    said = [f"at N = {', '.join(map(str, at))} the best rate is {kind}" for kind, at in places.items()]
    return f" ({'; '.join(said)})" if said else ""
