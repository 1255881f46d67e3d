"""The fitted optimum, the slope and the verdict, on losses whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale.transfer import fit_optimum, fit_slope, judge, one_shot_regret, wanted
from loopscale.transfer.optimum import Noise, pooled_noise
from loopscale.transfer.plan import grid_index, grid_rate
from loopscale.transfer.verdict import sentence, student95, unbracketed

GRID = [grid_rate(k) for k in range(-20, -4)]


def valley(center, noise=0.0, seeds=3, curve=0.05, rng=None, rates=GRID, floor=2.2):
    """(rate, seed) -> loss of a parabola in log2 rate with its minimum at `center`."""
    rng = rng or np.random.default_rng(0)
    return {
        (rate, seed): floor + 0.01 * seed + curve * (math.log2(rate) - center) ** 2 + noise * rng.standard_normal()
        for rate in rates
        for seed in range(seeds)
    }


@given(st.floats(-8, -4), st.integers(1, 4), st.floats(0.01, 0.5))
def test_a_parabola_is_recovered_exactly(center, seeds, curve):
    optimum = fit_optimum(valley(center, seeds=seeds, curve=curve))
    assert optimum.log2_lr == pytest.approx(center, abs=1e-6)
    assert optimum.loss == pytest.approx(2.2 + 0.01 * (seeds - 1) / 2, abs=1e-6)
    assert not optimum.edge


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        optimum = fit_optimum(valley(-6.1, noise=0.01, rng=rng))
        low, high = optimum.interval()
        inside += low <= 2**-6.1 <= high
    assert 0.9 <= inside / 200 <= 1.0


def test_divergence_is_kept_out_of_the_fit_but_not_out_of_the_choice():
    losses = valley(-6, seeds=2)
    losses[2.0**-6, 1] = math.inf
    losses.update({(rate, seed): math.inf for rate in GRID if rate > 2**-5.4 for seed in range(2)})
    optimum = fit_optimum(losses)
    assert -7.1 < optimum.log2_lr < -5.4
    assert fit_optimum(dict.fromkeys(losses, math.inf)) is None


def test_a_minimum_at_the_edge_is_said_not_fitted():
    optimum = fit_optimum({(rate, 0): -math.log2(rate) for rate in GRID})
    assert optimum.edge and optimum.lr == max(GRID)
    assert fit_slope({1: optimum, 2: optimum}) is None


@given(st.floats(-0.8, 0.8), st.floats(-6.5, -5))
@settings(deadline=None)
def test_the_slope_of_a_drift_is_recovered(slope, start):
    optima = {n: fit_optimum(valley(start + slope * math.log2(n))) for n in (1, 2, 4)}
    fitted = fit_slope(optima)
    assert fitted.value == pytest.approx(slope, abs=1e-6)
    low, high = fitted.interval
    assert low - 1e-6 <= slope <= high + 1e-6


@pytest.mark.parametrize(
    "drift,noise,verdict",
    [
        (0.0, 0.001, "transfers"),
        (-0.5, 0.001, "drifts"),
        (0.5, 0.001, "drifts"),
        (0.0, 0.2, "undecided"),
    ],
)
def test_the_verdict_follows_the_data(drift, noise, verdict):
    rng = np.random.default_rng(2)
    optima = {n: fit_optimum(valley(-6 + drift * math.log2(n), noise=noise, rng=rng)) for n in (1, 2, 4, 8)}
    regret = one_shot_regret([2.2], [2.2], noise)
    assert judge(fit_slope(optima), regret) == verdict


def test_a_tuned_rate_that_diverges_is_a_drift_and_a_large_regret_is_never_transfer():
    still = fit_slope({n: fit_optimum(valley(-6, noise=0.001)) for n in (1, 2, 4)})
    assert judge(still, one_shot_regret([math.inf], [2.2], 0.01)) == "drifts"
    assert judge(still, one_shot_regret([2.5, 2.5], [2.2, 2.21], 0.01)) == "undecided"
    moving = fit_slope({n: fit_optimum(valley(-6 - 0.1 * math.log2(n), noise=0.0001)) for n in (1, 2, 4)})
    assert judge(moving, one_shot_regret([2.25, 2.26, 2.27], [2.20, 2.21, 2.22], 0.01)) == "drifts"
    assert judge(moving, one_shot_regret([2.201, 2.211, 2.221], [2.20, 2.21, 2.22], 0.01)) == "transfers"
    assert judge(None, one_shot_regret([2.2], [2.2], 0.01)) == "undecided"


def test_one_seed_without_known_noise_gives_a_regret_and_no_interval():
    regret = one_shot_regret([2.2826], [2.2], 0.0)
    assert regret.value == pytest.approx(0.0826) and regret.interval is None


def test_regret_is_paired_over_seeds():
    regret = one_shot_regret([2.30, 2.41, 2.52], [2.29, 2.40, 2.51], 0.1)
    assert regret.value == pytest.approx(0.01)
    assert regret.interval[1] - regret.interval[0] < 0.001


class TestSearch:
    def run(self, center, seeds, start=2.0**-6, diverges_above=None):
        truth = valley(center, seeds=seeds, rates=[grid_rate(k) for k in range(-40, 9)])
        known = {}
        for _ in range(100):
            asked = wanted(known, seeds, start)
            if not asked:
                return known
            for rate, seed in asked:
                bad = diverges_above is not None and rate > diverges_above
                known[rate, seed] = math.inf if bad else truth[rate, seed]
        raise AssertionError("the search does not end")

    @given(st.floats(-14, 0), st.integers(1, 3))
    def test_it_brackets_the_optimum_wherever_it_is(self, center, seeds):
        known = self.run(center, seeds)
        optimum = fit_optimum(known)
        assert optimum.log2_lr == pytest.approx(center, abs=1e-6) and not optimum.edge
        assert optimum.n_seeds == seeds

    def test_it_is_cheap_where_the_guess_is_right(self):
        assert len(self.run(-6.0, seeds=1)) == 5
        assert len(self.run(-6.0, seeds=3)) == 15

    def test_it_walks_down_from_divergence(self):
        known = self.run(-9.0, seeds=1, diverges_above=2.0**-8.5)
        assert fit_optimum(known).log2_lr <= -8.5

    def test_fixed_rates_are_a_full_grid(self):
        asked = wanted({}, 2, 0.01, [0.1, 0.2, 0.4])
        assert len(asked) == 6 and wanted(dict.fromkeys(asked, 2.0), 2, 0.01, [0.1, 0.2, 0.4]) == []

    def test_the_grid_is_its_own_inverse(self):
        assert [grid_index(grid_rate(k)) for k in range(-40, 9)] == list(range(-40, 9))


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (6, 2.447), (30, 2.042)])
def test_students_quantile_is_the_tabulated_one(freedom, quantile):
    assert student95(freedom) == pytest.approx(quantile, rel=0.01)


def test_the_regrets_interval_covers_the_truth():
    """95 % intervals from the parabola's noise: over 400 made-up studies of two seeds, 93 % to 98 % hold the truth."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        optimum = fit_optimum(valley(-6.0, noise=0.005, seeds=2, rng=rng))
        tuned, best = 0.02 + 0.005 * rng.standard_normal(2), 0.005 * rng.standard_normal(2)
        low, high = one_shot_regret(list(tuned), list(best), optimum.noise, optimum.freedom).interval
        held += low <= 0.02 <= high
    assert 0.93 <= held / 400 <= 0.98


@pytest.mark.parametrize("growth", [1.0, 2.0], ids=["equal noise", "noise twice as large at the largest N"])
def test_the_slopes_interval_covers_the_truth_with_one_seed_at_the_largest_n(growth):
    """The demo's design, 4, 2 and 1 seeds at N = 1, 4, 16, and an arm's noise known mostly from the others."""
    rng = np.random.default_rng(5)
    held, rates = 0, [grid_rate(k) for k in range(-14, -9)]
    for _ in range(300):
        shape = {1: (4, 1.0), 4: (2, 1.0), 16: (1, growth)}
        arms = {n: valley(-6.0, 0.008 * g, s, 0.06, rng, rates) for n, (s, g) in shape.items()}
        prior = pooled_noise(fit_optimum(arm) for arm in arms.values())
        slope = fit_slope({n: fit_optimum(arm, prior=prior) for n, arm in arms.items()})
        held += slope is None or slope.interval[0] <= 0 <= slope.interval[1]
    assert held / 300 >= (0.93 if growth == 1 else 0.9)  # seen: 0.92 where the arms' noise differs twofold


def test_pooled_noise_is_worth_little_against_an_arms_own():
    noisy = fit_optimum(valley(-6.0, 0.02, 8, rng=np.random.default_rng(1)))
    again = fit_optimum(valley(-6.0, 0.02, 8, rng=np.random.default_rng(1)), prior=Noise(0.001, 4))
    assert again.noise == pytest.approx(noisy.noise, rel=0.1)
    assert pooled_noise([None]) is None and pooled_noise([noisy, None]).weight == 4


def test_one_seed_decides_nothing_and_claims_no_interval():
    optima = {n: fit_optimum({(2.0 ** (k / 2), 0): (k / 2 + 6) ** 2 for k in range(-16, -8)}) for n in (1, 4, 16)}
    regret = one_shot_regret([2.2], [2.2], 0.01)
    assert judge(fit_slope(optima), regret) == "transfers" and judge(fit_slope(optima), regret, seeds=1) == "undecided"
    said = sentence("looped", "undecided", fit_slope(optima), regret, optima)
    several = {**optima, 1: replace(optima[1], n_seeds=4)}  # the noise that they know serves the others
    assert "95 %" in sentence("looped", "transfers", fit_slope(several), regret, several)
    assert "one seed shows no noise and gives no interval (--seeds 3 does): it moves" in said and "95 %" not in said


@pytest.mark.parametrize(
    ("ks", "bottom", "diverges_above", "said"),
    [
        (range(-10, -4), -2, 0, "at N = 4 the best rate is the largest tried: add larger ones"),
        (range(-10, -4), -12, 0, "at N = 4 the best rate is the smallest tried: add smaller ones"),
        (range(-10, -4), -2, -7, "at N = 4 the best rate is the largest that trained: add rates near it"),
        (range(-8, -6), -7, 0, "at N = 4 the best rate is among too few to fit a parabola: add rates or seeds"),
        (range(-10, -4), -7, 0, ""),
    ],
)
def test_what_is_not_bracketed_says_where_and_what_to_add(ks, bottom, diverges_above, said):
    losses = {
        (2.0**k, seed): math.inf if k > diverges_above else (k - bottom) ** 2 + 0.01 * seed
        for k in ks
        for seed in range(2)
    }
    told = unbracketed({4: losses}, {4: fit_optimum(losses)})
    assert told == (f" ({said})" if said else "")
