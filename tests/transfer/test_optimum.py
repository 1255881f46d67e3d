"""The fitted optimum, the slope and the verdict, on losses whose truth is known."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import D32, D64, D64_NONE, INDEPENDENT, World, curves, regret_of, study

from loopscale.transfer import (
    Curves,
    Estimate,
    fit_optimum,
    fit_slope,
    get_preset,
    judge,
    one_shot_regret,
    over_seeds,
    wanted,
)
from loopscale.transfer.plan import grid_index, grid_rate
from loopscale.transfer.result import compared, overall, rule_json
from loopscale.transfer.verdict import unbracketed

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
@settings(deadline=None)  # the first call imports scipy
def test_a_parabola_is_recovered_exactly(center, seeds, curve):
    optimum = fit_optimum(valley(center, seeds=seeds, curve=curve))
    assert optimum.log2_lr == pytest.approx(center, abs=1e-6)
    assert optimum.loss == pytest.approx(2.2 + 0.01 * (seeds - 1) / 2, abs=1e-6)
    assert not optimum.edge


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
    assert fit_slope(optima).value == pytest.approx(slope, abs=1e-6)


def estimate(value, error=0.0):
    """A value known to within an error."""
    return Estimate(value=value, interval=(value - error, value + error), by_seed=(value,) * 3)


@pytest.mark.parametrize(
    ("slope", "regret", "verdict"),
    [
        (estimate(0.0, 0.1), estimate(0.002, 0.005), "transfers"),
        (estimate(0.0, 0.1), estimate(0.002, 0.012), "undecided"),  # a noisy study is not judged laxer
        (estimate(0.0, 0.2), estimate(0.0, 0.0), "undecided"),
        (estimate(-0.3, 0.1), estimate(0.0, 0.0), "drifts"),
        (estimate(-0.1, 0.08), estimate(0.002, 0.005), "undecided"),
        (estimate(-0.2, 0.5), estimate(0.877, 0.42), "drifts"),  # the ViT: what it costs is certain, the slope is not
        (estimate(0.0, 0.1), None, "drifts"),  # the tuned rate diverges
        (None, estimate(0.0, 0.0), "undecided"),
        (over_seeds([0.0]), over_seeds([0.0]), "undecided"),
    ],
)
def test_the_verdict_follows_the_intervals(slope, regret, verdict):
    assert judge(slope, regret) == verdict


def test_the_regret_of_the_best_rate_itself_has_an_interval_with_a_width():
    """The rate tuned at N = 1 and the best at N = 16 may be one point of the grid, and still not the best rate."""
    losses = study(World(np.random.default_rng(1), D64, (1, 16), 3), (1, 16), 3)
    optimum = fit_optimum(losses[16])
    best = min({rate for rate, _ in losses[16]}, key=lambda rate: abs(math.log2(rate) - optimum.log2_lr))
    regret = one_shot_regret(losses[16], optimum, best)
    assert regret.interval[1] > max(0.001, regret.value)
    assert one_shot_regret({**losses[16], (best, 0): math.inf}, optimum, best) is None


def test_a_rate_beyond_the_fitted_ones_costs_what_was_measured():
    losses = valley(-6.0, rates=GRID[4:9]) | {(2.0**-2, seed): 5.0 + 0.01 * seed for seed in range(3)}
    regret = one_shot_regret(losses, fit_optimum(losses), 2.0**-2)
    assert regret.value == pytest.approx(2.8, abs=0.01) and regret.interval[1] - regret.interval[0] < 1e-6


DESIGNS = [(1, 16), (1, 4, 16), (1, 2, 4, 8, 16)]
NOISES = {"d64": D64, "d64 none": D64_NONE, "d32": D32, "independent": INDEPENDENT}


def coverage(noise, loops, seeds, drift, repeats, spacing=1):
    """By printed interval the share that holds the truth; and the verdicts."""
    rng, held, verdicts = np.random.default_rng(5), {"slope": [], "rate": [], "loss": [], "regret": []}, []
    for _ in range(repeats):
        world = World(rng, noise, loops, seeds, drift)
        found = curves(world, loops, seeds, spacing)
        verdicts.append(judge(found.slope, found.regret))
        if found.slope is not None:
            held["slope"].append(inside(found.slope.interval, drift))
        for n, optimum in found.optima.items():
            if not optimum.edge:
                held["rate"].append(inside(optimum.interval(), 2.0 ** world.bottom[n]))
                held["loss"].append(inside(optimum.loss_interval(), 2.3))
        held["regret"].append(inside(found.regret.interval, regret_of(world, found.losses, loops)))
    return {name: float(np.mean(values)) for name, values in held.items()}, verdicts


def inside(interval, truth):
    """Whether the interval holds the truth."""
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


@pytest.mark.parametrize(
    ("noise", "loops", "seeds", "spacing"),
    [("d32", (1, 16), 3, 1), ("d64 none", (1, 4, 16), 2, 1), ("d64", (1, 16), 3, 2)],
)
def test_every_interval_holds_the_truth_about_as_often_as_it_says(noise, loops, seeds, spacing):
    shares, verdicts = coverage(NOISES[noise], loops, seeds, 0.0, 120, spacing)
    assert all(share >= 0.89 for share in shares.values()), shares
    assert verdicts.count("drifts") <= 5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("loops", DESIGNS, ids=str)
def test_coverage_and_false_verdicts_over_the_designs_that_users_run(loops, seeds):
    """Two standard errors of 600 repeats are 0.018: the limits of the share itself are 0.92 and 0.985."""
    for name, noise in NOISES.items():
        for drift in (0.0, -0.15, -0.3):
            shares, verdicts = coverage(noise, loops, seeds, drift, 600)
            assert all(0.92 <= share <= 0.985 + 0.01 for share in shares.values()), (name, drift, shares)
            if drift == 0:
                assert verdicts.count("drifts") <= 0.03 * 600, (name, verdicts.count("drifts"))
            if drift == -0.15:
                assert verdicts.count("transfers") <= 0.03 * 600, (name, verdicts.count("transfers"))


def test_the_middle_of_three_loops_has_no_weight_in_slope_and_regret():
    """So the demo trains the two ends."""
    losses = study(World(np.random.default_rng(3), D64_NONE, (1, 4, 16), 3), (1, 4, 16), 3)
    every, ends = Curves.fit(losses), Curves.fit({n: losses[n] for n in get_preset("demo").loops})
    assert every.slope.value == pytest.approx(ends.slope.value)
    assert every.slope.interval == pytest.approx(ends.slope.interval)
    assert every.regret == ends.regret


def test_nothing_depends_on_the_order_in_which_trials_ended():
    losses = study(World(np.random.default_rng(3), D32, (1, 4, 16), 3), (1, 4, 16), 3)
    shuffled = {n: dict(random.Random(n).sample(list(known.items()), len(known))) for n, known in losses.items()}
    assert rule_json("looped", Curves.fit(losses)) == rule_json("looped", Curves.fit(shuffled))


def test_rules_are_compared_paired_over_seeds():
    """Seeds move both rules alike: what differs is far better known than either."""
    rng = np.random.default_rng(2)
    shared = 0.1 * rng.standard_normal(4)
    found = {}
    for rule, drift, above in (("looped", 0.0, 0.0), ("sqrt", -0.25, 0.05)):
        arms = {
            n: {
                (rate, seed): 2.2 + above + 0.05 * (math.log2(rate) + 6 - drift * math.log2(n) - shared[seed]) ** 2
                for rate in GRID[4:13]
                for seed in range(4)
            }
            for n in (1, 4)
        }
        found[rule] = Curves.fit(arms)
    (row,) = compared(found)
    assert row["rules"] == ["looped", "sqrt"] and row["loops"] == 4
    assert row["slope"] == pytest.approx(0.25, abs=0.01) and row["slope_interval"][0] > 0.2
    assert row["loss"] == pytest.approx(-0.05, abs=0.002) and row["loss_interval"][1] < -0.04


def test_no_scale_is_said_in_words():
    rules = {"looped": {"verdict": "transfers"}, "sqrt": {"verdict": "drifts"}, "none": {"verdict": "drifts"}}
    assert overall(rules) == (
        "The best learning rate stands still over loops with looped; it drifts with sqrt and without a scale (rule none)."
    )


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
    @settings(deadline=None)
    def test_it_brackets_the_optimum_wherever_it_is(self, center, seeds):
        known = self.run(center, seeds)
        optimum = fit_optimum(known)
        assert optimum.log2_lr == pytest.approx(center, abs=1e-6) and not optimum.edge
        assert optimum.n_seeds == seeds

    def test_it_is_cheap_where_the_guess_is_right(self):
        assert len(self.run(-6.0, seeds=1)) == 5
        assert len(self.run(-6.0, seeds=3)) == 15

    def test_no_trial_is_spent_above_where_it_begins_when_the_best_rate_lies_below(self):
        assert max(rate for rate, _ in self.run(-8.0, seeds=3)) == 2.0**-6

    def test_all_seeds_place_the_rates_and_not_the_first_alone(self):
        """Seed 0 has its optimum an octave above the others': the rates are centred on the mean."""
        bottoms, known = [-5.0, -6.2, -6.2, -6.2], {}
        while asked := wanted(known, 4, 2.0**-5):
            known.update({(rate, seed): (math.log2(rate) - bottoms[seed]) ** 2 for rate, seed in asked})
        optimum = fit_optimum(known)
        assert optimum.log2_lr == pytest.approx(-5.9, abs=1e-6) and optimum.n_seeds == 4
        assert optimum.reach == pytest.approx((-7.0, -5.0))

    def test_it_walks_down_from_divergence(self):
        known = self.run(-9.0, seeds=1, diverges_above=2.0**-8.5)
        assert fit_optimum(known).log2_lr <= -8.5

    def test_fixed_rates_are_a_full_grid(self):
        asked = wanted({}, 2, 0.01, [0.1, 0.2, 0.4])
        assert len(asked) == 6 and wanted(dict.fromkeys(asked, 2.0), 2, 0.01, [0.1, 0.2, 0.4]) == []

    def test_the_grid_is_its_own_inverse(self):
        assert [grid_index(grid_rate(k)) for k in range(-40, 9)] == list(range(-40, 9))


def test_one_seed_decides_nothing_and_claims_no_interval():
    arms = {n: {(2.0 ** (k / 2), 0): (k / 2 + 6) ** 2 for k in range(-16, -8)} for n in (1, 4, 16)}
    said = rule_json("looped", Curves.fit(arms))
    assert said["verdict"] == "undecided" and said["slope_interval"] is None and said["regret_interval"] is None
    assert (
        said["sentence"].startswith("looped: undecided, one seed cannot show noise.") and "95 %" not in said["sentence"]
    )
    assert "--seeds 3" in said["next"]


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
