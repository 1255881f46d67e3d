"""The walk to the valley: laws of a search whose next point follows from what is known."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscale.records import Cell, Trial
from loopscale.train import parse_values
from loopscale.tune import Size, TuneSettings
from loopscale.tune.settings import bounds, start, to_point, to_values
from loopscale.tune.walk import box, walk, within

SIZE = Size(1, 1, 64, 100, 8)


def settings(*tuned):
    return TuneSettings(parse_values({"model": {"width": 64}, "optim": {"lr": 2.0**-8}}), SIZE, SIZE, tuned)


def told(point, loss):
    values = to_values(point)
    cell = Cell(rule="looped", loops=1, lr=values["lr"], values=values, seed=0, explored=True)
    finite = math.isfinite(loss)
    return Trial(key=str(values), cell=cell, loss=loss if finite else None, diverged=not finite)


def walked(chosen, loss, shuffled=0):
    """Where the walk ends, and the trials that it took; they are given back in any order."""
    known, order = [], random.Random(shuffled)
    while True:
        at, needed = walk(chosen, known)
        if not needed:
            return at, known
        asked = to_point(to_values(needed[order.randrange(len(needed))]))
        assert all(low - 0.01 <= asked[name] <= high + 0.01 for name, (low, high) in bounds(chosen).items())
        known.append(told(asked, loss(asked)))
        order.shuffle(known)


def bowl(hidden, outer, tilt=0.0, diverges=math.inf):
    def loss(point):
        x, y = point["lr"] - hidden, point.get("outer_lr", outer) - outer
        return math.inf if point["lr"] > diverges else 2 + 0.05 * x * x + 0.03 * y * y + tilt * x * y

    return loss


@given(st.floats(-12, -4), st.floats(-11, -1), st.floats(-0.03, 0.03), st.integers(0, 99))
def test_the_walk_ends_where_no_octave_is_better_whatever_the_order(hidden, outer, tilt, shuffled):
    chosen, loss = settings(), bowl(hidden, outer, tilt)
    at, known = walked(chosen, loss, shuffled)
    assert walked(chosen, loss, shuffled + 1)[0] == at
    assert len(known) <= 22
    for octave in (-1, 1):
        beside = {**at, "outer_lr": at["outer_lr"] + octave}
        low, high = bounds(chosen)["outer_lr"]
        assert loss(beside) >= loss(at) - 1e-3 or not low <= beside["outer_lr"] <= high
    assert within(at, box(chosen, at)) and at["strength"] == 0


def test_a_rate_four_times_too_low_and_an_outer_rate_far_off_are_found_in_few_trials():
    at, known = walked(settings(), bowl(-6.1, -3.2))
    assert abs(at["outer_lr"] + 3.2) <= 0.5 and abs(at["lr"] + 6.1) <= 1.5 and len(known) <= 11


def test_a_start_that_diverges_is_walked_away_from():
    at, _ = walked(settings(), bowl(-10.0, -7.0, diverges=-8.5))
    assert at["lr"] <= -9


@pytest.mark.parametrize("tuned", [("lr",), ("lr", "strength"), ("lr", "weight_decay")])
def test_without_an_outer_rate_the_hidden_one_is_walked_alone(tuned):
    chosen = settings(*tuned)
    at, known = walked(chosen, bowl(-6.0, 0.0))
    assert at == {**to_point(start(chosen)), "lr": -6.0} and len(known) <= 5
    assert box(chosen, at)["lr"] == (-8.0, -4.0)
    assert {name: box(chosen, at)[name] for name in tuned[1:]} == {name: bounds(chosen)[name] for name in tuned[1:]}
