"""Prediction 22: how aligned the visits still are after a long training, by the diagnosis of a model as it trains."""

from __future__ import annotations

import math
from typing import Any

import kept
import torch
import torch.nn.functional as F
from outcome import Figure, Line, Outcome, over_seeds
from search import base, outer_rate

import loopscale as ls

LOOPS, SEEDS, WATCHED = (4, 16), 8, (0, 10, 30, 100, 300, 1000)
LIMITS = (0.5, 1.0)  # of N: at least half of the alignment that 1/N is made for is there


def late_training() -> Outcome:
    """kappa / N before and during 1000 steps, N = 4 and 16."""
    outer = outer_rate()
    jobs = [{f"{n}-{seed}": [n, seed, outer]} for n in sorted(LOOPS, reverse=True) for seed in range(SEEDS)]
    found = kept.kept("22", kappas, jobs)
    lines, measured = [], []
    for n in LOOPS:
        rows = [[value / n for value in found[f"{n}-{seed}"]] for seed in range(SEEDS)]
        lines.append(Line(f"N = {n}", [max(step, 1) for step in WATCHED], rows))
        for place, word in ((0, "before training"), (-1, f"after {WATCHED[-1]} steps")):
            measured.append(over_seeds(f"kappa / N {word}, N = {n}", [row[place] for row in rows], LIMITS))
    figure = Figure("step (1: before training)", "kappa / N", lines, log_y=False)
    trained = f"{WATCHED[-1]} AdamW steps at 2^-6, outer rate fixed"
    setting = f"bytes of Python sources, d = 32, 8 sequences of 32, {trained}, {SEEDS} seeds"
    note = "Held to be right for 1/N when at least half of the alignment is there, before training and at its end."
    return Outcome(22, measured, figure, setting, note)


def kappas(batch: kept.Batch) -> dict[str, Any]:
    """kappa at the watched steps, for each [loops, seed, outer rate]."""
    return {key: _kappas(*job) for key, job in batch.items()}


def _kappas(loops: int, seed: int, outer: float) -> list[float]:
    data = base(loops)(2.0**-6, seed).config.load_data()
    model = ls.LoopedTransformer(ls.ModelConfig(width=32, head_dim=16, loops=loops), seed=seed)
    optimizer = ls.build_optimizer(model, lr=2.0**-6, outer_lr=outer / 2.0**-6)
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


STUDIES = {22: late_training}
