"""The one-step law: how far a few optimiser steps move the output, over N, with the user's own optimiser."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from loopscale.diagnosis.branches import Branch
from loopscale.diagnosis.growth import power_fit
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.measure import Pass
from loopscale.diagnosis.onestep import MakeOptimizer, train_a_little
from loopscale.diagnosis.overloops import following
from loopscale.diagnosis.setting import Setting, at_each


@dataclass(frozen=True)
class OneStep:
    """|change of the output| / |output| after 1 and after `steps` optimiser steps, by N; slopes of both over log N.

    `without_gradient` names the parameters that a loss of the output gives no gradient to.
    """

    optimizer: str
    steps: int
    first: dict[int, float]
    last: dict[int, float]
    slope_first: float | None
    slope_last: float | None
    without_gradient: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def one_step_law(
    setting: Setting,
    knob: Knob | None,
    seen: Pass,
    optimizer: MakeOptimizer | None = None,
    steps: int = 4,
    follow: Sequence[Branch] | None = None,
) -> OneStep | None:
    """Train copies of the model for a few steps, at its own N and at N/2 and 2N where N can be set.

    A rate that holds at every N asks for slopes of about 0. With `follow` the scale, which does not follow N in the model,
    is made to, in these branches of other loops as well. None when the model cannot be copied or has no gradient.
    """
    own = seen.loop.visits
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    silent: list[str] = []
    name = "Adam, rate 0.001" if optimizer is None else "yours"
    factors = None if follow is None else (lambda count: following(seen, count, follow))
    counts = sorted({max(own // 2, 2), own, 2 * own}) if knob else [own]
    for count, there in at_each(setting, knob, counts, factors):
        try:
            # The copy is made while the knob is set: an attribute is copied with its module.
            copied = replace(there, model=copy.deepcopy(setting.model))
            torch.manual_seed(0)
            names = silent if count == own else None
            changes = train_a_little(copied, steps, 1e-3, optimizer, (1, steps), silent=names)
        except (RuntimeError, TypeError, IndexError, ValueError):
            continue
        if len(changes) == 2 and all(math.isfinite(value) for value in changes.values()):
            first[count], last[count] = changes[1], changes[steps]
    if not first:
        return None
    return OneStep(name, steps, first, last, _slope(first), _slope(last), tuple(silent))


def _slope(changes: dict[int, float]) -> float | None:
    fit = power_fit(list(changes), list(changes.values()))
    return fit[0] if fit else None
