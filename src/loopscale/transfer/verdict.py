"""From optima to a verdict: the slope over loops, the one-shot regret, whether looping pays, and all of it in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loopscale.records import Estimate, Pays
from loopscale.transfer.estimate import Losses, Optimum, along_loops, complete, over_seeds

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


@dataclass(frozen=True)
class Beside:
    """Losses by seed of `loops` loops, and of one loop beside them; inf where training diverged.

    All three start from the same seeds in the same order. `long` is one loop trained for `long_steps`, as long as the
    target's compute lasts (`loopscale.train.equal_steps`); empty where it was not trained. `each`: every network at its
    own best rate, else as the plan of a tuning sets it. `counted`: in what the compute is.
    """

    loops: int
    steps: int
    target: Sequence[float]
    short: Sequence[float]
    long: Sequence[float] = ()
    long_steps: int = 0
    at_lower_end: bool = False
    each: str = "each at its own best rate"
    counted: str = "FLOPs"


def does_looping_pay(losses: Beside) -> Pays:
    """Compare the target with one loop and say it in words; differences are the target's loss minus that of one loop."""
    at_steps = _minus(losses.target, losses.short)
    at_compute = _minus(losses.target, losses.long) if losses.long else None
    told = [f"at equal steps ({losses.steps:,}) {_told(losses.loops, losses.target, losses.short, at_steps)}"]
    if losses.long:
        longer = f"at equal compute (one loop for {losses.long_steps:,} steps, as many {losses.counted})"
        told.append(f"{longer} {_told(losses.loops, losses.target, losses.long, at_compute)}")
    else:
        told.append("equal compute was not measured")
    end = ""
    if losses.at_lower_end:
        end = (
            " The best strength lies at the lower end of what was tried, where a visit changes next to nothing: "
            "the network does best with its loops nearly switched off."
        )
    return Pays(
        loops=losses.loops,
        steps=losses.steps,
        long_steps=losses.long_steps,
        sentence=f"{_verdict(losses, at_steps, at_compute)}: {'; '.join(told)}; {losses.each}.{end}",
        equal_steps=None if at_steps is None else at_steps.value,
        equal_steps_interval=None if at_steps is None else at_steps.interval,
        equal_compute=None if at_compute is None else at_compute.value,
        equal_compute_interval=None if at_compute is None else at_compute.interval,
        at_lower_end=losses.at_lower_end,
    )


def _minus(target: Sequence[float], one: Sequence[float]) -> Estimate | None:
    """Estimate the difference over the seeds that both have; None where a training diverged."""
    pairs = list(zip(target, one, strict=False))
    return over_seeds([a - b for a, b in pairs]) if pairs and all(map(math.isfinite, (*target, *one))) else None


def _told(loops: int, target: Sequence[float], one: Sequence[float], difference: Estimate | None) -> str:
    if difference is None:
        if all(map(math.isfinite, target)):
            return f"{loops} loops train and one diverges"
        return f"{loops} loops diverge"
    if difference.interval is None:
        return f"{loops} loops are {_better(difference)} than one (one seed shows no noise)"
    ends = f"95 % interval {difference.interval[0]:+.3f} to {difference.interval[1]:+.3f}"
    if not difference.moves:
        return f"{loops} loops and one are not told apart ({difference.value:+.3f} nats, {ends})"
    return f"{loops} loops are {_better(difference)} than one ({ends})"


def _better(difference: Estimate) -> str:
    return f"{abs(difference.value):.3f} nats {'better' if difference.value < 0 else 'worse'}"


def _verdict(losses: Beside, at_steps: Estimate | None, at_compute: Estimate | None) -> str:
    """Say what the two differences mean together; what one seed says, or an interval that holds 0, decides nothing."""
    steps, compute = (_sign(at_steps, losses.short), _sign(at_compute, losses.long))
    if not all(map(math.isfinite, losses.target)):
        return "Looping does not pay here"
    if steps > 0:
        return "At this length looping does not pay"
    if compute < 0:
        return "At this length looping pays, for its compute too"
    if steps < 0 and compute > 0:
        return "At this length looping pays for its weights, not for its compute"
    if steps < 0:
        return "At this length looping pays for its weights; whether for its compute is open"
    if compute > 0:
        return "At this length looping does not pay for its compute; whether for its weights is open"
    return "Whether looping pays at this length is open"


def _sign(difference: Estimate | None, one: Sequence[float]) -> int:
    """Return -1 where the target is better for certain, 1 where it is worse for certain, else 0."""
    if difference is None:
        return -1 if one and not all(map(math.isfinite, one)) else 0
    return (1 if difference.value > 0 else -1) if difference.moves else 0
