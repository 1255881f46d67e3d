"""From the trials of an exponent study to its result: the powers of N with intervals, what carrying costs, the decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from loopscale.exponent.plan import Cell, ExponentPlan, powers, starts_anew
from loopscale.exponent.study import BEST, FARTHEST, ExponentStudy
from loopscale.exponent.surface import Surface, by_cell
from loopscale.records import (
    AtTarget,
    CarriedEps,
    Estimate,
    ExponentResult,
    OuterPilot,
    Pays,
    Point,
    Valley,
    ValleyPoint,
)
from loopscale.study import command_of, train_command
from loopscale.train import TrainConfig
from loopscale.transfer.estimate import along_loops, complete, over_seeds, paired
from loopscale.transfer.verdict import Beside, does_looping_pay

ABOVE, SQRT_BELOW = 0.6, 0.85  # ends of the interval of a that speak for 1/N, and for 1/sqrt(N)
TARGET = "target.toml"  # in the study's folder: a training at the target
SAME = 0.01  # nats: less than this is no difference worth a rule
STILL = 0.15  # octaves of rate per doubling of loops, as in `transfer`

Verdict = Literal["supported", "too strong", "does not matter", "sqrt supported", "undecided"]
RateVerdict = Literal["stands still", "moves", "undecided"]


def powers_of(surfaces: Mapping[int, Surface]) -> tuple[Estimate, Estimate] | None:
    """Fit best eps ~ N^-a and best rate ~ N^-g by least squares over log2 N, for each seed; None if one is at an edge.

    The strengths of the surfaces are those of eps N, so a is 1 less the slope of log2 strength.
    """
    if len(surfaces) < 2 or any(surface.edge for surface in surfaces.values()):
        return None
    strength, rate = (_line(surfaces, axis) for axis in (0, 1))
    a = over_seeds([1 - slope for slope in strength.by_seed], 1 - strength.value)
    return a, over_seeds([-slope for slope in rate.by_seed], -rate.value)


def bent(surfaces: Mapping[int, Surface]) -> tuple[Estimate, Estimate] | None:
    """Return the power of eps between the two smallest and between the two largest N, if they differ over the seeds (95 %).

    One power is then a mean of both, and a line through all N is no guide beyond the largest.
    """
    loops = sorted(surfaces)
    if len(loops) < 3 or powers_of(surfaces) is None:
        return None
    ends = [powers_of({n: surfaces[n] for n in pair}) for pair in (loops[:2], loops[-2:])]
    (first, _), (last, _) = (found for found in ends if found is not None)
    low, high = paired(last, first).ends
    return (first, last) if low > 0 or high < 0 else None


def _line(surfaces: Mapping[int, Surface], axis: int, at: int | None = None) -> Estimate:
    """Estimate the slope of an axis over log2 N, or its value at N = `at`."""
    return along_loops({n: (one.at[axis], [shift[axis] for shift in one.shifts]) for n, one in surfaces.items()}, at)


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


def summarise(study: ExponentStudy, provenance: dict[str, Any]) -> ExponentResult:
    """Return the whole result of a finished study."""
    plan = study.plan
    surfaces = {n: surface for n in sorted(plan.loops) if (surface := study.surface(n)) is not None}
    found = powers_of(surfaces) if len(surfaces) == len(plan.loops) else None
    a, g = found or (None, None)
    carried, losses = _carried(study)
    differences = _differences(losses)
    regret = next((row.regret for row in carried if row.way == "looped"), None)
    verdict, rate = decide(a, differences, regret), decide_rate(g)
    valleys = tuple(_valley(study, n, surfaces.get(n)) for n in sorted(plan.loops))
    target = None if found is None or plan.target is None else at_target(plan, surfaces, plan.target)
    pays = _pays(study, losses)
    result = ExponentResult(
        verdict=verdict,
        rate_verdict=rate,
        sentence=headline(verdict, a, valleys),
        says=(
            *_says_bent(surfaces),
            *_says(plan, (a, g, rate), differences, carried, target, pays),
            *_spared(study),
        ),
        next=next_step(study, verdict, valleys, target),
        a=a,
        g=g,
        loops=tuple(sorted(plan.loops)),
        valleys=valleys,
        carried=carried,
        differences=differences,
        target=target,
        outer=_outer(study),
        pays=pays,
        user_code="" if plan.user_code is None else plan.user_code.place,
        provenance={
            **provenance,
            "seeds": list(range(plan.seeds)),
            "fresh_seeds": list(plan.fresh_seeds),
        },
    )
    return result


def at_target(plan: ExponentPlan, surfaces: Mapping[int, Surface], loops: int) -> AtTarget:
    """Carry the optimum to N = `loops` on the line through the two N around it, or the two largest, with the seeds' spread.

    A line through all N is narrower, and wrong where the power changes over N by less than `bent` can show: its 95 %
    interval covers 0.70 to 0.95 of simulated studies, that of the last two 0.94 to 0.96.
    """
    known = sorted(surfaces)
    upper = next((place for place, n in enumerate(known) if place and n >= loops), len(known) - 1)
    nearest = {n: surfaces[n] for n in known[upper - 1 : upper + 1]}
    strength, rate = (_line(nearest, axis, loops) for axis in (0, 1))
    eps = strength.powered(plan.eps(loops, 1.0))
    return AtTarget(loops=loops, eps=eps, strength=2.0**strength.value, lr=rate.powered())


def _carried(study: ExponentStudy) -> tuple[tuple[CarriedEps, ...], dict[str, list[float]]]:
    """Return what each way loses over the fresh seeds, and its losses; nothing before they ran."""
    ways = study.ways()
    losses = {way: known for way in ways if (known := study.fresh(study.way_cells(way))) is not None}
    rows = []
    for way, known in losses.items():
        rule, strength, lr = ways[way]
        a, g = (None, None) if way == BEST or starts_anew(way) else powers(way)
        regret = _minus(losses, way, BEST) if way != BEST else None
        rows.append(
            CarriedEps(
                way=way,
                a=a,
                g=g,
                eps=study.plan.eps(study.last, strength, rule),
                lr=lr,
                loss=over_seeds(known) if all(map(math.isfinite, known)) else None,
                regret=regret,
            )
        )
    return tuple(rows), losses


def _minus(losses: Mapping[str, Sequence[float]], first: str, second: str) -> Estimate | None:
    pair = [losses.get(first), losses.get(second)]
    if not all(known and all(map(math.isfinite, known)) for known in pair):
        return None
    return paired(*(over_seeds(known) for known in pair if known))


def _differences(losses: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Compare `looped` with every other way over the fresh seeds, and 3/4 with it."""
    pairs = [("looped", way) for way in losses if way not in ("looped", BEST)] + [("0.75", "looped")]
    return {f"{one} - {other}": found for one, other in pairs if (found := _minus(losses, one, other)) is not None}


def _valley(study: ExponentStudy, loops: int, surface: Surface | None) -> Valley:
    plan = study.plan
    points = _points(study, loops, surface)
    if surface is None:
        return Valley(loops=loops, points=points, edge=True, open_at="every trial diverged")
    return Valley(
        loops=loops,
        points=points,
        eps=surface.place(0).powered(plan.eps(loops, 1.0)),
        lr=surface.place(1).powered(),
        loss=surface.loss,
        edge=surface.edge,
        open_at=_open_at(study, loops, surface) if surface.edge else "",
    )


def _points(study: ExponentStudy, loops: int, surface: Surface | None) -> tuple[ValleyPoint, ...]:
    """Return the lowest loss at each eps; where seed 0 alone trained, its loss moved by what it is off the mean elsewhere.

    The intervals are of the difference to the optimum, paired over seeds: what a seed adds to every loss is no part of a
    valley's shape.
    """
    rows = {cell: row for cell, row in by_cell(study.grid(loops)).items() if all(map(math.isfinite, row))}
    most = max(map(len, rows.values()), default=0)
    whole = {cell: row for cell, row in rows.items() if len(row) == most}
    off = fmean(fmean(row) - row[0] for row in whole.values()) if whole else 0.0
    points = []
    for i in sorted({cell[0] for cell in rows}):
        column = {cell: row for cell, row in rows.items() if cell[0] == i}
        shared = {cell: row for cell, row in column.items() if cell in whole} or column
        row = min(shared.values(), key=lambda losses: fmean(losses))
        alone = len(row) < most
        floor = surface.losses if surface is not None and not alone else (0.0,) * len(row)
        above, level = over_seeds([loss - low for loss, low in zip(row, floor, strict=True)]), fmean(floor)
        ends = above.interval
        points.append(
            ValleyPoint(
                eps=study.plan.eps(loops, study.plan.axes[0].value(i)),
                loss=fmean(row) + (off if alone else 0.0),
                interval=None if ends is None or alone else (level + ends[0], level + ends[1]),
                seeds=len(row),
            )
        )
    return tuple(points)


def _open_at(study: ExponentStudy, loops: int, surface: Surface) -> str:
    """Name the side on which no minimum was found."""
    said = []
    for noun, (side, end) in zip(("strength", "hidden rate"), _ends_of(study, loops, surface), strict=True):
        if side:
            said.append(f"the best {noun} is the {'lowest' if side < 0 else 'highest'} of what was tried ({end:.4g})")
    return "; ".join(said) or "the loss has no minimum around its best cell"


def _ends_of(study: ExponentStudy, loops: int, surface: Surface | None) -> list[tuple[int, float]]:
    """Return, for strength and hidden rate, at which end of what was tried the best lies (-1, 1, 0: neither), and the end.

    Where every trial diverged, the smaller ones are missing.
    """
    cells, found = by_cell(study.grid(loops)), []
    for axis, values in enumerate(study.plan.axes):
        tried = sorted({cell[axis] for cell in cells}) or [0]
        low, high = values.value(tried[0]), values.value(tried[-1])
        place = low if surface is None else 2.0 ** surface.at[axis]
        side = -1 if place <= low * 1.01 else 1 if place >= high / 1.01 else 0
        found.append((side, low if side < 0 else high))
    return found


def _widened(study: ExponentStudy) -> list[str]:
    """Return the options under which the search begins wide enough for each N whose optimum lies at an end."""
    options = []
    found = {loops: study.surface(loops) for loops in study.plan.loops}
    sides = [_ends_of(study, loops, one) for loops, one in found.items() if one is None or one.edge]
    for axis, (name, values) in enumerate(zip(("--strengths", "--lrs"), study.plan.axes, strict=True)):
        ends = {row[axis][0] for row in sides}
        low = -FARTHEST - 2 if -1 in ends else 0
        high = len(values.start) + FARTHEST + 2 if 1 in ends else len(values.start)
        if ends - {0}:
            options += [name, ",".join(f"{values.value(k):.6g}" for k in range(low, high))]
    return options


def _outer(study: ExponentStudy) -> OuterPilot | None:
    rate, optimum = study.outer_rate(), study.pilot_optimum()
    if rate is None:
        return None
    rows = {} if optimum is None else complete(study.pilot())
    points = tuple(Point(lr=at, loss=fmean(row), losses=tuple(row)) for at, row in rows.items())
    return OuterPilot(rate=rate, interval=None if optimum is None else optimum.interval(), points=points)


def _pays(study: ExponentStudy, losses: Mapping[str, Sequence[float]]) -> Pays | None:
    """Put one loop beside the largest N at its best, over the fresh seeds."""
    cells, long_cells = study.single_cells(1.0), study.single_cells(study.plan.longer)
    short, target = study.fresh(cells) if cells else None, losses.get(BEST)
    if short is None or target is None:
        return None
    long = study.fresh(long_cells) or []
    steps = study.plan.base.train.steps
    low = study.surface(study.first)
    end = low is not None and low.at[0] <= math.log2(study.plan.axes[0].value(-FARTHEST))
    beside = f"one loop with the values of N = {study.first}"
    long_steps = round(steps * study.plan.longer) if long else 0
    return does_looping_pay(Beside(study.last, steps, target, short, long, long_steps, end, beside))


# --- words


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


def _says_bent(surfaces: Mapping[int, Surface]) -> list[str]:
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


def _says(
    plan: ExponentPlan,
    found: tuple[Estimate | None, Estimate | None, RateVerdict],
    differences: Mapping[str, Estimate],
    carried: Sequence[CarriedEps],
    target: AtTarget | None,
    pays: Pays | None,
) -> list[str]:
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


def _spared(study: ExponentStudy) -> list[str]:
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


def next_step(study: ExponentStudy, verdict: Verdict, valleys: Sequence[Valley], target: AtTarget | None) -> str:
    """Say in one line what to do now, as a command."""
    plan = study.plan

    def again(*options: object) -> str:
        return command_of("exponent", plan.user_code, "--out", study.folder, *options)

    opened = [valley for valley in valleys if valley.edge]
    if opened:
        options = _widened(study)
        what = "Begin the search wider" if options else "Add seeds"
        command = again(*(options or ("--seeds", 2 * plan.seeds)))
        return f"At N = {opened[0].loops} {opened[0].open_at}. {what}, in the same folder: {command}"
    if plan.seeds == 1:
        return (
            f"One seed cannot estimate noise; repeat it with more, the trials that ran are kept: {again('--seeds', 4)}"
        )
    if verdict == "undecided":
        wider = ",".join(map(str, sorted({*plan.loops, 2 * max(plan.loops)})))
        more = again("--seeds", 2 * plan.seeds, "--fresh", 2 * plan.fresh)
        return f"Repeat it with more seeds, the trials are kept (--loops {wider} narrows the power fastest): {more}"
    if target is None:
        return f"Ask for the eps at a larger N: {again('--target', f'loops={4 * max(plan.loops)}')}"
    place = None if plan.user_code is None else plan.user_code.place
    return f"Train at the target: {train_command(place, study.folder / TARGET)}"


def target_config(plan: ExponentPlan, target: AtTarget, outer: float) -> TrainConfig:
    """Return the config of a training at the target, with the eps and the rates that the study gives it."""
    cell = Cell(target.loops, float(f"{target.strength:.4g}"), float(f"{target.lr.value:.4g}"), outer, 0)
    return plan.config(cell)
