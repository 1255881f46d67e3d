"""What the scale is worth over N: 13 (gap), 14 (trainability), 15 (basin width). Three rules at strength 1, one layer."""

from __future__ import annotations

import itertools
import math

import numpy as np
from outcome import ABOVE, Figure, Line, Outcome, over_seeds
from search import FIXED, Losses, at_best, base, fixed, searched, trained

from loopscale.transfer import complete

RULES = {"looped": "1/N", "sqrt": "1/sqrt(N)", "none": "none"}
LOOPS, SEEDS = (1, 2, 4, 8, 16), 16


def _curves(study: str) -> dict[tuple[str, int], Losses]:
    """Losses around the optimum of every rule and N; the curves are the same for both studies that read them."""
    return searched(study, {(rule, n): fixed(n, rule=rule) for rule in RULES for n in LOOPS}, SEEDS)


def gap_grows() -> Outcome:
    """Prediction 13: the gap between none and 1/N at each one's best rate: at N = 1, and what every doubling adds."""
    curves = _curves("gap")
    gaps = {n: np.array(at_best(curves["none", n])) - np.array(at_best(curves["looped", n])) for n in LOOPS}
    measured = [over_seeds("gap at N = 1", list(gaps[1]), (0.0, 0.0))]
    for small, large in itertools.pairwise(LOOPS):
        added = list(gaps[large] - gaps[small])
        measured.append(over_seeds(f"added from N = {small} to {large}", added, (0.0, ABOVE)))
    rows = [[float(gaps[n][seed]) for n in LOOPS] for seed in range(SEEDS)]
    figure = Figure("N", "loss of none minus loss of 1/N, nats", [Line("gap", LOOPS, rows)], log_y=False)
    return Outcome(13, measured, figure, FIXED)


def basin_width() -> Outcome:
    """Prediction 15: curvature of the loss over log2 rate within an octave of each rule's best rate, at the largest N."""
    curves, last = _curves("gap"), max(LOOPS)
    bent = {rule: _curvatures(curves[rule, last]) for rule in RULES}
    measured = [
        over_seeds(
            f"curvature of {RULES[rule]} minus that of 1/N, nats per octave^2",
            [a - b for a, b in zip(bent[rule], bent["looped"], strict=True)],
            (0.0, ABOVE),
        )
        for rule in ("sqrt", "none")
    ]
    lines = []
    for rule, name in RULES.items():
        rows = complete(curves[rule, last])
        by_seed = [list(row) for row in zip(*rows.values(), strict=True)]
        lines.append(Line(f"eps {name}", list(rows), by_seed))
    figure = Figure("learning rate", f"validation loss at N = {last}, nats", lines, log_y=False)
    told = ", ".join(f"{RULES[rule]} {np.mean(values):.3f}" for rule, values in bent.items())
    return Outcome(15, measured, figure, FIXED, f"Mean curvatures: {told}.")


def _curvatures(losses: Losses) -> list[float]:
    rows = complete(losses)
    x = [math.log2(rate) for rate in rows]
    return [float(np.polyfit(x, row, 2)[0]) for row in zip(*rows.values(), strict=True)]


def trainability() -> Outcome:
    """Prediction 14: cells that fail, and the largest rate that still trains at N = 16."""
    loops, rates, seeds = (1, 4, 16), [2.0**k for k in range(-9, 3)], 5
    arms = {(rule, n): fixed(n, rule=rule) for rule in RULES for n in loops}
    grid = [(rate, seed) for rate in rates for seed in range(seeds)]
    losses, limit = trained("14", arms, dict.fromkeys(arms, grid)), byte_entropy()
    failed = {
        rule: [
            sum(not losses[rule, n][rate, seed] < limit for n in loops for rate in rates) / (len(loops) * len(rates))
            for seed in range(seeds)
        ]
        for rule in RULES
    }
    largest = {
        rule: [math.log2(max(r for r in rates if losses[rule, 16][r, seed] < limit)) for seed in range(seeds)]
        for rule in RULES
    }
    measured = []
    for rule in ("sqrt", "none"):
        more = [a - b for a, b in zip(failed[rule], failed["looped"], strict=True)]
        measured.append(over_seeds(f"share of failed cells, {RULES[rule]} minus 1/N", more, (0.0, ABOVE)))
        lower = [b - a for a, b in zip(largest[rule], largest["looped"], strict=True)]
        measured.append(over_seeds(f"octaves of rate, 1/N minus {RULES[rule]}, N = 16", lower, (0.0, ABOVE)))
    lines = [
        Line(
            f"eps {name}, N = 16",
            rates,
            [
                [x if math.isfinite(x := losses[rule, 16][rate, seed]) else None for rate in rates]
                for seed in range(seeds)
            ],
        )
        for rule, name in RULES.items()
    ]
    figure = Figure("learning rate", "validation loss, nats (missing: diverged)", lines, log_y=False)
    note = (
        f"A cell fails when it diverges or ends above {limit:.2f} nats, the entropy of the validation text's bytes: "
        "it learned nothing of the context."
    )
    return Outcome(14, measured, figure, FIXED + f", N = 1, 4 and 16, rates 2^-9 to 2^2, {seeds} seeds", note)


def byte_entropy() -> float:
    """Nats per byte of the validation windows when nothing is known but how often each byte occurs in them."""
    config = base(1)(1.0, 0).config
    pairs = config.load_data().validation_batches(
        config.data.batch_size, config.data.context, config.train.eval_batches
    )
    counts = np.bincount(np.concatenate([targets.ravel() for _, targets in pairs]))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


STUDIES = {13: gap_grows, 14: trainability, 15: basin_width}
FOLDERS = {13: "gap", 14: "14", 15: "gap"}
