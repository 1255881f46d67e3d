"""A planted valley: losses that follow from a known power law, by formula, for the parts that need no training."""

from __future__ import annotations

import math
import random
from concurrent.futures import Future
from typing import Any

from loopscale.exponent import ExponentPlan
from loopscale.records import Trial
from loopscale.study import Executor
from loopscale.train import make_config

A, G = 0.8, 0.1  # best eps ~ N^-A, best hidden rate ~ N^-G
EPS_AT_1, LR_AT_1, OUTER = 0.7, 2.0**-6.3, 2.0**-4.2
CURVES = (0.03, 0.01, 0.05)  # of log2 eps, of the cross term, of log2 rate


def planted_loss(loops: int, eps: float, lr: float, outer: float, seed: int, noise: float = 0.0) -> float:
    """A quadratic valley whose place moves by seed, `noise` octaves, as the noise of real seeds does."""
    draw = random.Random(seed * 1000 + loops)
    x = math.log2(eps / EPS_AT_1) + A * math.log2(loops) - draw.gauss(0, noise)
    y = math.log2(lr / LR_AT_1) + G * math.log2(loops) - draw.gauss(0, noise)
    z = math.log2(outer / OUTER)
    level = 2.0 + random.Random(seed).gauss(0, noise / 10)
    return level + CURVES[0] * x * x + CURVES[1] * x * y + CURVES[2] * y * y + 0.02 * z * z


class Planted(Executor):
    """An executor that answers by the formula."""

    def __init__(self, plan: ExponentPlan, noise: float = 0.0) -> None:
        self.plan, self.noise = plan, noise
        self.ran: list[dict[str, Any]] = []

    def start(self, jobs):
        future: Future[Any] = Future()
        key, cell, config = jobs[0]
        values = cell["values"]
        eps = self.plan.eps(cell["loops"], values["strength"], cell["rule"])
        loss = planted_loss(cell["loops"], eps, values["lr"], values["outer_rate"], cell["seed"], self.noise)
        self.ran.append(cell)
        record = {"key": key, "cell": cell, "config": config, "loss": loss, "diverged": False, "seconds": 1.0}
        future.set_result(Trial.model_validate(record).model_dump(mode="json", exclude_unset=True))
        return future


def base(**model: Any):
    """A tiny config of the house model."""
    sizes = {"width": 16, "layers": 1, "loops": 1, "head_dim": 8, **model}
    return make_config(
        {
            "model": sizes,
            "data": {"path": "stdlib", "context": 8, "batch_size": 2},
            "optim": {"lr": 2.0**-6.5},
            "train": {"steps": 3, "eval_batches": 1, "device": "cpu"},
        },
        (),
    )
