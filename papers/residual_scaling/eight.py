"""After the experiment of EXPONENT.md: what carrying from eight loops instead of two costs at thirty-two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import kept
from outcome import Table, over_seeds

from loopscale.exponent import BEST, Cell, ExponentStudy
from loopscale.train import TrainConfig, fit

FOLDER = Path(__file__).resolve().parents[2] / "records" / "exponent"
FROM = 8
SAME = 0.01  # nats: carrying is free where the upper end of its regret is below


def table() -> Table:
    """The optimum of N = 8 carried to N = 32 by 1/N, on the experiment's fresh seeds, paired with what ran there.

    Limits, written before the first trial: carrying from 8 is free where the upper end of its regret against the optimum
    of N = 32 is at most 0.01 nats; it is better than carrying from 2 where the whole interval of the difference lies
    below 0.
    """
    study = ExponentStudy.load(FOLDER)
    ways, found = study.ways(), study.surface(FROM)
    assert found is not None and not found.edge
    cells = [
        Cell(study.last, _rounded(found.strength), _rounded(found.lr), study.outer_rate() or 0.0, seed)
        for seed in study.plan.fresh_seeds
    ]
    jobs = [{f"{FROM}-{cell.seed}": study.plan.config(cell).model_dump(mode="json")} for cell in cells]
    eight = [float(loss) for loss in kept.kept("eight", _train, jobs).values()]
    best, two = (study.fresh(study.way_cells(way)) for way in (BEST, "looped"))
    assert best is not None and two is not None
    rows = [
        _row(study.first, study.plan.eps(study.last, ways["looped"][1]), ways["looped"][2], two, best, two),
        _row(FROM, study.plan.eps(study.last, cells[0].strength), cells[0].lr, eight, best, two),
    ]
    sentence = (
        f"Carried to N = {study.last} by 1/N from N = {study.first} and from N = {FROM}, over {len(cells)} fresh "
        f"seeds: loss, and paired differences to the optimum found at N = {study.last} and to carrying from "
        f"N = {study.first}."
    )
    train = study.plan.base.train
    return Table(
        "eight", sentence, rows, f"the experiment's: d = 64, L = 1, {train.steps} AdamW steps, outer rate fixed"
    )


def _row(
    loops: int, eps: float, lr: float, losses: Sequence[float], best: Sequence[float], two: Sequence[float]
) -> dict[str, str]:
    return {
        "tuned at N": str(loops),
        "eps": f"{eps:.3g}",
        "rate": f"2^{math.log2(lr):.2f}",
        "loss": f"{fmean(losses):.3f}",
        "minus the optimum there [95 % interval]": _difference(losses, best),
        "minus tuned at N = 2 [95 % interval]": "" if losses is two else _difference(losses, two),
    }


def _difference(losses: Sequence[float], other: Sequence[float]) -> str:
    gap = over_seeds("", [mine - theirs for mine, theirs in zip(losses, other, strict=True)], (-math.inf, SAME))
    return f"{gap.value:+.4f} [{gap.interval[0]:+.4f}, {gap.interval[1]:+.4f}]"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")  # as the experiment's own cells


def _train(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Train by itself, not in a stack: as the trials that it is held against."""
    return {key: fit(TrainConfig.model_validate(config)).val_loss for key, config in batch.items()}
