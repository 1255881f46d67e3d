"""The one-step law: how far a few optimiser steps move the output, over N, with the user's own optimiser."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from loopscale.diagnosis.growth import power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.onestep import MakeOptimizer, train_a_little


@dataclass(frozen=True)
class OneStep:
    """|change of the output| / |output| after 1 and after `steps` optimiser steps, by N; slopes of both over log N."""

    optimizer: str
    steps: int
    first: dict[int, float]
    last: dict[int, float]
    slope_first: float | None
    slope_last: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def one_step_law(
    model: nn.Module,
    batch: Any,
    knob: Knob | None,
    own: int,
    optimizer: MakeOptimizer | None = None,
    steps: int = 4,
) -> OneStep | None:
    """Train copies of the model for a few steps, at its own N and at N/2 and 2N where N can be set.

    A rate that holds at every N asks for slopes of about 0. None when the model cannot be copied or has no gradient.
    """
    counts = sorted({knob.nearest(n) for n in (max(own // 2, 2), own, 2 * own)} | {own}) if knob else [own]
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    name = "Adam, rate 0.001" if optimizer is None else "yours"
    for count in counts:
        try:
            # The copy is made while the knob is set: an attribute is copied with its module.
            with _at(knob, count) as extra:
                trained = copy.deepcopy(model)
                torch.manual_seed(0)
                changes = train_a_little(trained, batch, steps, 1e-3, optimizer, extra, (1, steps))
        except (RuntimeError, TypeError, IndexError, ValueError):
            continue
        if len(changes) == 2 and all(math.isfinite(value) for value in changes.values()):
            first[count], last[count] = changes[1], changes[steps]
    if not first:
        return None
    return OneStep(name, steps, first, last, _slope(first), _slope(last))


def _at(knob: Knob | None, count: int) -> AbstractContextManager[dict[str, Any]]:
    return knob.at(count) if knob is not None else nullcontext({})


def _slope(changes: dict[int, float]) -> float | None:
    fit = power_fit(list(changes), list(changes.values()))
    return fit[0] if fit else None
