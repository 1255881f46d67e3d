"""Predictions that need training of their own: 11, 14, 16, 19, 22. Minutes each, at d = 32; a study is kept by trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from outcome import ABOVE, Figure, Line, Outcome, about, over_seeds

import loopscale as ls
from loopscale.train import make_config
from loopscale.transfer import Arm, Study, StudyPlan, fit_optimum, run_study

RUNS = Path(__file__).resolve().parents[2] / "runs" / "paper"
STEPS, UNIFORM = 60, math.log(256)
SETTING = f"bytes of Python sources, d = 32, 8 sequences of 32, {STEPS} AdamW steps"


def base(layers: int = 1, optimizer: str = "adamw", data: str = "stdlib", steps: int = STEPS) -> Any:
    """The config of every trial; layers count against a base of 1."""
    return make_config(
        {
            "model": {"width": 32, "layers": layers, "loops": 1, "head_dim": 16, "base_layers": 1},
            "data": {"path": data, "context": 32, "batch_size": 8},
            "optim": {"optimizer": optimizer, "lr": 2**-6, "schedule": "linear", "warmup": 0.1},
            "train": {"steps": steps, "eval_batches": 32, "seed": 0, "device": "cpu"},
        }
    )


def losses_of(name: str, plan: StudyPlan) -> Callable[[Arm], Mapping[tuple[float, int], float]]:
    """Run or continue a study in runs/paper/NAME; gives (rate, seed) -> loss of an arm."""
    folder = RUNS / name
    run_study(plan, folder)
    return Study.load(folder).losses


def by_seed(losses: Mapping[tuple[float, int], float], seeds: int) -> list[float]:
    """log2 of the best rate seed by seed: the parabola through the rates around each seed's own minimum."""
    return [_vertex({rate: loss for (rate, s), loss in losses.items() if s == seed}) for seed in range(seeds)]


def _vertex(curve: Mapping[float, float]) -> float:
    """log2 x where a parabola through the points within an octave of the smallest has its minimum, kept inside them."""
    finite = {math.log2(x): y for x, y in curve.items() if math.isfinite(y)}
    best = min(finite, key=lambda x: finite[x])
    near = [x for x in sorted(finite) if abs(x - best) <= 1.01]
    if len(near) < 3:
        return best
    c, b, _ = np.polyfit(near, [finite[x] for x in near], 2)
    return float(np.clip(-b / (2 * c), near[0], near[-1])) if c > 0 else best


def rate_over_layers() -> Outcome:
    """Prediction 11: the best base rate over L at N = 2, b = 1/2 and b = 1, each at the strength that suits it."""
    layers, seeds, lines, measured = (1, 2, 4, 8), 3, [], []
    best: dict[str, list[float]] = {}
    for rule, strength, power in (("looped", 0.25, -0.5), ("looped-complete", 1.0, 0.0)):
        rows = []
        name = f"b = {'1/2' if rule == 'looped' else '1'}, strength {strength:g}"
        best[name] = []
        for count in layers:
            plan = StudyPlan(base(count), (rule,), (2,), seeds=seeds, strengths=(strength,))
            losses = losses_of(f"layers{count}-{rule}", plan)(Arm(rule, strength, 2))
            rows.append(by_seed(losses, seeds))
            best[name].append(round(_loss(losses), 4))
        # What is searched is the base rate; the hidden weights' own rate carries the factor L^(b - 1) on top.
        columns = list(zip(*rows, strict=True))
        slopes = [float(np.polyfit(np.log2(layers), row, 1)[0]) + power for row in columns]
        measured.append(over_seeds(f"slope of log rate over log L, {name}", slopes, about(power, 0.2)))
        own = [[2 ** (x + power * math.log2(n)) for x, n in zip(row, layers, strict=True)] for row in columns]
        lines.append(Line(name, layers, own))
    figure = Figure("L", "best rate of the hidden weights", lines)
    told = "; ".join(f"{name}: {', '.join(f'{loss:.3f}' for loss in row)}" for name, row in best.items())
    note = f"Loss at the best rate for L = 1, 2, 4, 8: {told}."
    return Outcome(11, measured, figure, SETTING + ", N = 2", note, {"losses": best})


def _loss(losses: Mapping[tuple[float, int], float]) -> float:
    optimum = fit_optimum(losses)
    return math.inf if optimum is None else optimum.loss


def trainability() -> Outcome:
    """Prediction 14: cells that fail, and the largest rate that trains at N = 16."""
    loops, rates, seeds = (1, 16), tuple(2.0**k for k in range(-7, 2)), 3
    rules = {"looped": "1/N", "sqrt": "1/sqrt(N)", "none": "none"}
    losses = losses_of("trainability", StudyPlan(base(), tuple(rules), loops, lrs=rates, seeds=seeds))
    failed: dict[str, list[float]] = {}
    largest: dict[str, list[float]] = {}
    lines = []
    for rule, name in rules.items():
        table = {n: losses(Arm(rule, 1.0, n)) for n in loops}
        failed[rule] = [
            sum(not table[n][rate, seed] < UNIFORM for n in loops for rate in rates) / (len(loops) * len(rates))
            for seed in range(seeds)
        ]
        largest[rule] = [
            math.log2(max(rate for rate in rates if table[16][rate, seed] < UNIFORM)) for seed in range(seeds)
        ]
        rows = [[_finite(table[16][rate, seed]) for rate in rates] for seed in range(seeds)]
        lines.append(Line(f"eps {name}, N = 16", rates, rows))
    measured = []
    for rule in ("sqrt", "none"):
        more = [a - b for a, b in zip(failed[rule], failed["looped"], strict=True)]
        measured.append(over_seeds(f"share of failed cells, {rules[rule]} minus 1/N", more, (0.0, ABOVE)))
        lower = [b - a for a, b in zip(largest[rule], largest["looped"], strict=True)]
        measured.append(over_seeds(f"octaves of rate, 1/N minus {rules[rule]}, N = 16", lower, (0.0, ABOVE)))
    figure = Figure("learning rate", "validation loss, nats (missing: diverged)", lines, log_y=False)
    note = "A cell fails when it diverges or ends above the loss of a uniform guess, ln 256."
    return Outcome(14, measured, figure, SETTING + ", N = 1 and 16, rates 2^-7 to 2^1", note)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def strength_transfers() -> Outcome:
    """Prediction 16: the best strength at N = 1, L = 1 against (8, 1) and (2, 4)."""
    strengths, seeds, lines = (0.25, 0.5, 1.0, 2.0, 4.0), 3, []
    rates = (2.0**-7, 2.0**-6, 2.0**-5)
    one = losses_of("strength1", StudyPlan(base(1), ("looped",), (1, 8), lrs=rates, seeds=seeds, strengths=strengths))
    four = losses_of("strength4", StudyPlan(base(4), ("looped",), (2,), lrs=rates, seeds=seeds, strengths=strengths))
    places = {"N = 1, L = 1": (one, 1), "N = 8, L = 1": (one, 8), "N = 2, L = 4": (four, 2)}
    best: dict[str, list[float]] = {}
    for name, (losses, n) in places.items():
        tables = {lam: losses(Arm("looped", lam, n)) for lam in strengths}
        curves = [
            {lam: min(loss for (_, s), loss in tables[lam].items() if s == seed) for lam in strengths}
            for seed in range(seeds)
        ]
        best[name] = [_vertex(curve) for curve in curves]
        lines.append(Line(name, strengths, [[_finite(curve[lam]) for lam in strengths] for curve in curves]))
    start, *others = places
    measured = [
        over_seeds(
            f"log2 of the best strength, {name} against {start}",
            [b - a for a, b in zip(best[start], best[name], strict=True)],
            about(0, 1.0),
        )
        for name in others
    ]
    figure = Figure("strength lambda", "validation loss at the best rate, nats", lines, log_y=False)
    return Outcome(16, measured, figure, SETTING)


def one_shot() -> Outcome:
    """Prediction 19: rate and strength tuned at N = 1; N = 16 against a sweep of their own rate."""
    seeds, strengths = 4, (0.5, 1.0, 2.0)
    tuned = losses_of("oneshot1", StudyPlan(base(), ("looped",), (1,), seeds=seeds, strengths=strengths))
    strength = min(strengths, key=lambda lam: _loss(tuned(Arm("looped", lam, 1))))
    rate = _best_rate(tuned(Arm("looped", strength, 1)))
    around = tuple(rate * 2.0 ** (k / 2) for k in (-3, -2, -1, 0, 1, 2))
    plan = StudyPlan(base(), ("looped",), (16,), lrs=around, seeds=seeds, strengths=(strength,))
    losses, lines, measured = losses_of("oneshot", plan), [], []
    for n in (16,):
        table = losses(Arm("looped", strength, n))
        own = _best_rate(table)
        regret = [table[rate, seed] - table[own, seed] for seed in range(seeds)]
        noise = float(np.std([table[own, seed] for seed in range(seeds)], ddof=1))
        measured.append(over_seeds(f"regret at N = {n}, nats (seed noise {noise:.4f})", regret, (-ABOVE, noise)))
        lines.append(Line(f"N = {n}", around, [[_finite(table[r, s]) for r in around] for s in range(seeds)]))
    figure = Figure("learning rate", "validation loss, nats", lines, log_y=False)
    note = f"Tuned at N = 1: rate 2^{math.log2(rate):.1f}, strength {strength:g}."
    return Outcome(19, measured, figure, SETTING, note)


def _best_rate(losses: Mapping[tuple[float, int], float]) -> float:
    """The rate with the smallest mean among those that every seed was trained at."""
    rates: dict[float, list[float]] = {}
    for (rate, _), loss in losses.items():
        rates.setdefault(rate, []).append(loss)
    full = max(map(len, rates.values()))
    return min((r for r in rates if len(rates[r]) == full), key=lambda r: sum(rates[r]))


WATCHED = (0, 10, 30, 100, 300)


def late_training() -> Outcome:
    """Prediction 22: kappa over training at N = 4 and 16."""
    lines, measured = [], []
    for n in (4, 16):
        rows = [[value / n for value in _kappas(n, seed)] for seed in range(3)]
        lines.append(Line(f"N = {n}", [max(step, 1) for step in WATCHED], rows))
        measured.append(over_seeds(f"kappa / N after {WATCHED[-1]} steps, N = {n}", [r[-1] for r in rows], (0.5, 1.0)))
        lines_start = [row[0] for row in rows]
        measured.append(over_seeds(f"kappa / N at the start, N = {n}", lines_start, (0.5, 1.0)))
    figure = Figure("step (1: before training)", "kappa / N", lines, log_y=False)
    note = "Held to be right for 1/N when at least half of the alignment is left at the end."
    return Outcome(22, measured, figure, SETTING.replace(str(STEPS), str(WATCHED[-1])), note)


def _kappas(loops: int, seed: int) -> list[float]:
    data = base().load_data()
    model = ls.LoopedTransformer(ls.ModelConfig(width=32, head_dim=16, loops=loops), seed=seed)
    optimizer = ls.build_optimizer(model, lr=2.0**-6)
    probe = torch.from_numpy(data.batch(10**6, seed, 8, 32)[0])
    found = []
    for step in range(WATCHED[-1] + 1):
        if step in WATCHED:
            found.append(float(ls.diagnose(model, probe).kappa or math.nan))
        x, y = (torch.from_numpy(part) for part in data.batch(step, seed, 8, 32))
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / 30)
        optimizer.step()
    return found


STUDIES = {11: rate_over_layers, 14: trainability, 16: strength_transfers, 19: one_shot, 22: late_training}

__all__ = ["STUDIES", "base", "losses_of"]
