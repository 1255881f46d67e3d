"""What the numbers of an exponent study mean: the verdicts on 1/N and on the rate, and the sentences that say them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from loopscale.exponent.plan import ExponentPlan
from loopscale.exponent.study import BEST, ExponentStudy
from loopscale.exponent.surface import Surface, bent, by_cell
from loopscale.records import AtTarget, CarriedEps, Estimate, Pays, Valley

ABOVE, SQRT_BELOW = 0.6, 0.85  # ends of the interval of a that speak for 1/N, and for 1/sqrt(N)
SAME = 0.01  # nats: less than this is no difference worth a rule
STILL = 0.15  # octaves of rate per doubling of loops, as in `transfer`

Verdict = Literal["supported", "too strong", "does not matter", "sqrt supported", "undecided"]
RateVerdict = Literal["stands still", "moves", "undecided"]


def decide(a: Estimate | None, differences: Mapping[str, Estimate], regret: Estimate | None) -> Verdict:
    """Decide what the powers and the fresh seeds say of 1/N; an end of an interval that is not known decides nothing.

    `differences`: loss of a = 1 minus that of a = 1/2 ("looped - sqrt"), and of a = 3/4 minus that of a = 1
    ("0.75 - looped"), paired over fresh seeds. `regret`: loss of a = 1 minus that of the optimum found at the largest N.
    """
    if a is None or a.interval is None:
        return "undecided"
    low, high = a.interval
    against = _ends(differences.get("looped - sqrt"))
    if low > ABOVE and high >= 1 and against[1] < 0 and _ends(regret)[1] < SAME:
        return "supported"
    if high < 1 and _ends(differences.get("0.75 - looped"))[1] < 0:
        return "too strong"
    if -SAME <= against[0] and against[1] <= SAME:
        return "does not matter"
    return "sqrt supported" if low <= 0.5 <= high < SQRT_BELOW else "undecided"


def decide_rate(g: Estimate | None) -> RateVerdict:
    """Decide whether the best hidden rate stands still over N."""
    low, high = _ends(g)
    if -STILL <= low and high <= STILL:
        return "stands still"
    return "moves" if g is not None and (low > STILL or high < -STILL) else "undecided"


def _ends(estimate: Estimate | None) -> tuple[float, float]:
    return (-math.inf, math.inf) if estimate is None else estimate.ends


def headline(verdict: Verdict, a: Estimate | None, valleys: Sequence[Valley]) -> str:
    """Say the main number in one short sentence."""
    if a is None:
        where = ", ".join(f"N = {valley.loops}" for valley in valleys if valley.edge)
        return f"No exponent: the optimum at {where} does not lie inside what was tried."
    if a.interval is None:
        return f"The best eps falls as N^{-a.value:.2f}; one seed gives no interval."
    spoken = {
        "supported": "so 1/N holds",
        "too strong": "so 1/N is too strong here",
        "does not matter": "and 1/N or 1/sqrt(N) makes no difference here",
        "sqrt supported": "so 1/sqrt(N) holds here",
        "undecided": "which does not decide between the rules",
    }[verdict]
    low, high = a.interval
    return f"The best eps falls as N^{-a.value:.2f} (95 % interval of the power {low:.2f} to {high:.2f}), {spoken}."


def says_bent(surfaces: Mapping[int, Surface]) -> list[str]:
    """Say where the power changes over N, and what follows from it."""
    found, loops = bent(surfaces), sorted(surfaces)
    if found is None:
        return []
    told = [
        f"N^{-one.value:.2f}{one.within('.2f')} from N = {low} to {high}"
        for one, low, high in zip(found, (loops[0], loops[-2]), (loops[1], loops[-1]), strict=True)
    ]
    return [
        f"The power is not one number: {' and '.join(told)}. Beyond N = {loops[-1]} count on the last, and tune at "
        f"N = {loops[-2]} rather than at {loops[0]}."
    ]


def says_numbers(
    plan: ExponentPlan,
    found: tuple[Estimate | None, Estimate | None, RateVerdict],
    differences: Mapping[str, Estimate],
    carried: Sequence[CarriedEps],
    target: AtTarget | None,
    pays: Pays | None,
) -> list[str]:
    """Say the power of the rate, what carrying costs, the target, and whether looping pays."""
    a, g, rate = found
    low, high = min(plan.loops), max(plan.loops)
    said = []
    if g is not None:
        spoken = {"stands still": "it stands still", "moves": "it moves", "undecided": "undecided whether it moves"}[
            rate
        ]
        said.append(f"The best hidden rate falls as N^-g with g = {g.value:.2f}{g.within('.2f')}: {spoken}.")
    costs = [_cost(row) for row in carried if row.way != BEST]
    if costs:
        said.append(
            f"Carried from N = {low} to {high}, over {plan.fresh} fresh seeds, against the optimum found there: "
            f"{'; '.join(costs)}."
        )
    against = differences.get("looped - sqrt")
    if against is not None:
        said.append(f"1/N minus 1/sqrt(N), paired: {against.value:+.3f} nats{against.within('+.3f')}.")
    if target is not None:
        said.append(
            f"At N = {target.loops} use eps = {target.eps.value:.3g}{target.eps.within('.3g')}, which is model.strength = "
            f"{target.strength:.3g} under rule looped, and optim.lr = {target.lr.value:.3g}{target.lr.within('.3g')}."
        )
    if pays is not None:
        said.append(pays.sentence)
    if a is not None and a.interval is not None and plan.seeds == 2:
        said.append("Two seeds make an interval six times as wide as many would: read the powers as a first look.")
    return said


def says_spared(study: ExponentStudy) -> list[str]:
    """Say what the search saves against a grid that gives every cell all seeds."""
    rows = [row for loops in study.plan.loops for row in by_cell(study.grid(loops)).values()]
    spared = sum(max(0, study.plan.seeds - len(row)) for row in rows)
    whole = study.plan.seeds * len(rows)
    return [f"Away from the valleys one seed was enough: {spared} of {whole} trials were spared."] if spared else []


def _cost(row: CarriedEps) -> str:
    name = "no scale (rule none)" if row.way == "none" else row.spoken
    if row.regret is None:
        return f"{name} diverges or has no comparison" if row.loss is None else name
    ends = "" if row.regret.interval is None else f" ({row.regret.interval[0]:+.3f} to {row.regret.interval[1]:+.3f})"
    return f"{name} {row.regret.value:+.3f}{ends}"
