"""The fitted surface and the search for it: exact on quadratics, honest at edges, with intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planted import planted_loss

from loopscale.exponent import (
    Axis,
    ExponentPlan,
    Surface,
    at_target,
    bent,
    decide,
    decide_rate,
    fit_surface,
    powers_of,
    wanted,
)
from loopscale.train import TrainConfig
from loopscale.transfer import over_seeds

AXES = (Axis(tuple(2.0**k for k in range(-2, 3))), Axis(tuple(2.0 ** (-6.5 + 0.75 * k) for k in (-1, 0, 1))))


def searched(loss, seeds, axes=AXES):
    """Answer what the search asks until it asks nothing; returns the losses that it has then."""
    losses = {}
    while missing := wanted(losses, axes, seeds):
        assert len(losses) < 4000
        losses |= {(i, j, seed): loss(axes[0].value(i), axes[1].value(j), seed) for i, j, seed in missing}
    return losses


@given(
    at=st.tuples(st.floats(-4, 4), st.floats(-8.5, -4.5)),
    curves=st.tuples(st.floats(0.01, 0.2), st.floats(-0.6, 0.6), st.floats(0.01, 0.2)),
)
@example(at=(0.5, -8.0), curves=(0.125, -0.5, 0.01171875))  # the vertex is at the outermost cells, to the last digit
@settings(max_examples=40, deadline=None)
def test_the_search_finds_a_quadratic_valley_and_the_fit_gives_its_vertex(at, curves):
    first, skew, second = curves
    cross = skew * math.sqrt(first * second)

    def loss(strength, lr, seed):
        x, y = math.log2(strength) - at[0], math.log2(lr) - at[1]
        return 2.0 + 0.01 * seed + first * x * x + cross * x * y + second * y * y

    found = fit_surface(searched(loss, 2), AXES)
    assert not found.edge
    assert found.at == pytest.approx(at, abs=1e-6)
    assert found.losses == pytest.approx((2.0, 2.01), abs=1e-9)
    assert np.allclose(found.shifts, 0, atol=1e-6)


def test_each_seed_s_own_vertex_is_its_shift():
    places = [(-0.3, -6.4), (0.3, -6.6)]

    def loss(strength, lr, seed):
        x, y = math.log2(strength) - places[seed][0], math.log2(lr) - places[seed][1]
        return 2.0 + 0.03 * x * x + 0.05 * y * y

    found = fit_surface(searched(loss, 2), AXES)
    assert [tuple(np.add(found.at, shift)) for shift in found.shifts] == [pytest.approx(place) for place in places]


@pytest.mark.parametrize(("apart", "columns"), [(0.2, 3), (1.6, 5)])
def test_seeds_with_optima_beyond_what_was_trained_get_two_steps_on_either_side(apart, columns):
    def loss(strength, lr, seed):
        x, y = math.log2(strength) - (0.0, apart, -apart)[seed], math.log2(lr) + 6.5
        return 2.0 + 0.03 * x * x + 0.05 * y * y

    shared = {(i, j) for i, j, seed in searched(loss, 3) if seed == 1}
    assert len({i for i, _ in shared}) == columns and len({j for _, j in shared}) == 3


def test_a_valley_without_an_end_is_an_edge_and_the_search_stops():
    found = fit_surface(searched(lambda strength, lr, seed: 2.0 + 0.1 * math.log2(strength), 2), AXES)
    assert found.edge and found.strength == AXES[0].value(-4)


def test_where_everything_diverges_the_search_ends_without_a_surface():
    assert fit_surface(searched(lambda strength, lr, seed: math.inf, 2), AXES) is None


def test_diverged_cells_beside_the_optimum_are_left_out_of_the_fit():
    def loss(strength, lr, seed):
        x, y = math.log2(strength) - 0.2, math.log2(lr) + 6.4
        return math.inf if x + y > 1.5 else 2.0 + 0.03 * x * x + 0.05 * y * y

    found = fit_surface(searched(loss, 2), AXES)
    assert found.at == pytest.approx((0.2, -6.4), abs=1e-6)


def simulated(seeds, loops, noise, start):
    """The powers of a study on planted losses whose valleys move by seed; strengths mean eps N here."""
    surfaces = {
        n: fit_surface(
            searched(lambda s, lr, seed, n=n: planted_loss(n, s / n, lr, 2.0**-4.2, start + seed, noise), seeds), AXES
        )
        for n in loops
    }
    return powers_of(surfaces)


def coverage(repeats, seeds, loops, noise=0.4):
    inside = [
        low <= truth <= high
        for repeat in range(repeats)
        for estimate, truth in zip(simulated(seeds, loops, noise, 10_000 * repeat), (0.8, 0.1), strict=True)
        for low, high in [estimate.interval]
    ]
    return sum(inside) / len(inside)


@pytest.mark.parametrize(("seeds", "loops"), [(2, (2, 8)), (4, (2, 8, 32)), (8, (2, 4, 8, 16))])
def test_the_intervals_of_both_powers_cover(seeds, loops):
    assert 0.92 <= coverage(150, seeds, loops) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
@pytest.mark.parametrize("loops", [(2, 8), (2, 8, 32), (2, 4, 8, 16)])
def test_the_intervals_of_both_powers_cover_in_every_design(seeds, loops, noise):
    assert 0.92 <= coverage(600, seeds, loops, noise) <= 0.985


def estimate(value, error):
    return over_seeds([value - error, value, value + error], value)


def test_the_decision_follows_the_plan_of_the_experiment():
    tight = estimate(1.0, 0.02)
    better, level, worse = (estimate(value, 0.001) for value in (-0.03, 0.0, 0.03))
    assert decide(tight, {"looped - sqrt": better}, level) == "supported"
    assert decide(tight, {"looped - sqrt": better}, worse) == "undecided"
    assert decide(estimate(0.85, 0.02), {"looped - sqrt": better, "0.75 - looped": better}, level) == "too strong"
    assert decide(estimate(0.7, 0.3), {"looped - sqrt": level}, None) == "does not matter"
    assert decide(estimate(0.5, 0.02), {"looped - sqrt": worse}, worse) == "sqrt supported"
    assert decide(estimate(0.7, 0.3), {}, None) == decide(None, {}, None) == "undecided"
    assert decide(over_seeds([1.0]), {"looped - sqrt": level}, level) == "undecided"


def test_the_rate_stands_still_within_its_limit_and_moves_beyond_it():
    assert decide_rate(estimate(0.05, 0.02)) == "stands still"
    assert decide_rate(estimate(0.4, 0.05)) == "moves"
    assert decide_rate(estimate(0.15, 0.1)) == decide_rate(None) == "undecided"


def test_a_surface_at_an_edge_gives_no_power():
    edge = Surface((0.0, 0.0), (2.0,), ((0.0, 0.0),), ((0.0, 0.0),) * 2, ((0.0, 0.0),) * 2, edge=True)
    assert powers_of({2: edge, 8: edge}) is None


def valleys(strengths, noise=0.05):
    """Surfaces whose log2 strengths are those by N, over eight seeds that lie around them."""
    rng = np.random.default_rng(0)
    shifts = {n: tuple((float(x), 0.0) for x in noise * rng.standard_normal(8)) for n in strengths}
    return {
        n: Surface((at, -6.5), (2.0,) * 8, shifts[n], ((0.0, 0.0),) * 2, ((0.0, 0.0),) * 2)
        for n, at in strengths.items()
    }


@pytest.mark.parametrize("bend", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("loops", [(2, 8, 32), (2, 4, 8, 16)])
def test_the_interval_at_the_target_covers_also_where_the_power_changes(loops, bend):
    rng = np.random.default_rng(0)
    target, turn, seeds, noise = 4 * loops[-1], math.log2(loops[1]), 8, 0.2
    plan = ExponentPlan(TrainConfig(), loops=loops, target=target)

    def truth(n):  # log2 of the best eps N: the power is 0.8 up to the second N, and 0.8 + bend from there on
        return 0.2 * math.log2(n) - bend * max(0.0, math.log2(n) - turn)

    def covered():
        surfaces = {}
        for n in loops:
            places = np.stack([truth(n) + noise * rng.standard_normal(seeds), noise * rng.standard_normal(seeds)], 1)
            at, nothing = places.mean(0), ((0.0, 0.0), (0.0, 0.0))
            surfaces[n] = Surface(tuple(at), (2.0,) * seeds, tuple(map(tuple, places - at)), nothing, nothing)
        low, high = at_target(plan, surfaces, target).eps.interval
        return low <= 2.0 ** truth(target) * plan.eps(target, 1.0) <= high

    assert 0.92 <= np.mean([covered() for _ in range(400)]) <= 0.985


def test_a_power_that_changes_over_the_loops_is_said_and_the_target_follows_the_last():
    curved = valleys({2: 0.0, 8: 1.0, 32: 1.0})  # eps falls as N^-1/2 from 2 to 8, and as 1/N from 8 to 32
    first, last = bent(curved)
    assert first.value == pytest.approx(0.5) and last.value == pytest.approx(1.0)
    plan = ExponentPlan(TrainConfig(), loops=(2, 8, 32), target=128)
    assert at_target(plan, curved, 128).strength == pytest.approx(2.0)
    assert at_target(plan, curved, 4).strength == pytest.approx(2.0**0.5), "between 2 and 8, their line"
    straight = valleys({2: 0.0, 8: 0.5, 32: 1.0})
    assert bent(straight) is None
    assert at_target(plan, straight, 128).strength == pytest.approx(2.0**1.5)
    assert bent(valleys({2: 0.0, 8: 1.0})) is None, "two numbers of loops cannot tell"
