"""The statistics of a tuning, on numbers whose truth is known: races over seeds, surfaces, regrets and their intervals."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscale.errors import UserError
from loopscale.records import Cell, Trial
from loopscale.study import UserCode
from loopscale.train import parse_values
from loopscale.tune import TuneSettings, extrapolate, fit_surface, nats, read_local, spoken
from loopscale.tune.advice import about_looping, after_tuning, after_verifying, if_bounded, in_seed_noise
from loopscale.tune.findings import (
    Checks,
    Probe,
    _bound,
    _headline,
    _overall,
    _pays,
    exponents,
    findings,
    jobs_of,
    known_noise,
    probes,
)
from loopscale.tune.plan import _begun, at_lower_end, caveats, decide
from loopscale.tune.regret import as_json, verdict
from loopscale.tune.search import PairedNoise, beaten, leader, paired_noise
from loopscale.tune.settings import Size, bounds, to_point, to_values

RNG = np.random.Generator(np.random.PCG64(7))


def raced(gap, seeds, noise=0.01, share=0.1):
    """Two candidates; what both owe to a seed is ten times the noise of their difference."""
    owed = share * RNG.standard_normal(seeds)
    own = noise / math.sqrt(2) * RNG.standard_normal((2, seeds))
    return [dict(enumerate(2 + owed + own[0])), dict(enumerate(2 + gap + owed + own[1]))]


def test_the_paired_noise_is_that_of_the_differences_and_not_of_the_seeds():
    found = [paired_noise(raced(0.02, 4)).size ** 2 for _ in range(400)]
    assert math.sqrt(np.mean(found)) == pytest.approx(0.01, rel=0.1)


def test_equal_candidates_are_told_apart_in_five_races_of_a_hundred_and_unequal_ones_mostly():
    def shares(gap):
        races = [raced(gap, 3) for _ in range(600)]
        ranked = [(tables, leader(tables)) for tables in races]
        return np.mean([any(beaten(t, first, paired_noise(ts)) for t in ts if t is not first) for ts, first in ranked])

    assert shares(0.0) == pytest.approx(0.05, abs=0.025)
    assert shares(0.05) > 0.85


def test_one_seed_beats_nobody_and_whoever_diverged_is_out():
    assert paired_noise([{0: 2.0}, {0: 3.0}]) is None
    assert not beaten({0: 3.0}, {0: 2.0}, None)
    assert beaten({0: math.inf}, {0: 2.0}, None)
    assert leader([{0: math.inf}, {0: 9.0}]) == {0: 9.0}
    assert beaten({0: 2.1, 1: 2.1}, {0: 2.0, 1: 2.0}, PairedNoise(0.0, 1)), "no noise at all: any gap decides"


def bowl(points, at=(0.3, -0.4)):
    return [2 + 0.06 * (x - at[0]) ** 2 + 0.04 * (y - at[1]) ** 2 + 0.03 * (x - at[0]) * (y - at[1]) for x, y in points]


def test_a_surface_gives_its_minimum_and_an_interval_that_holds_it_as_often_as_it_says():
    held = 0
    for _ in range(60):
        points = RNG.uniform(-2, 2, (16, 2))
        losses = np.array(bowl(points)) + 0.004 * RNG.standard_normal(16)
        vertex = fit_surface(points.tolist(), losses.tolist())
        held += vertex.low[0] <= 0.3 <= vertex.high[0]
    assert vertex.crossed and held >= 53


def test_few_points_fit_the_squares_alone_and_fewer_nothing():
    points = RNG.uniform(-2, 2, (6, 2)).tolist()
    vertex = fit_surface(points, [2 + 0.06 * (x - 0.3) ** 2 + 0.04 * (y + 0.4) ** 2 for x, y in points])
    assert not vertex.crossed and vertex.predicts and vertex.at == pytest.approx((0.3, -0.4), abs=1e-6)
    assert fit_surface(points[:5], [2.0] * 5) is None
    five = RNG.uniform(-1, 1, (12, 5)).tolist()
    assert not fit_surface(five, [sum(x * x for x in point) for point in five]).crossed


def test_a_local_sweep_is_read_and_its_interval_covers_the_true_regret():
    truth, covered = 0.05 * 0.3**2, 0
    for trial in range(200):
        noise = 0.004 * RNG.standard_normal((2, 3))
        at = 2 + RNG.standard_normal()
        losses = [[at + 0.05 * (o - 0.3) ** 2 + n for o, n in zip((-1, 0, 1), row, strict=True)] for row in noise]
        low, high = read_local(losses, PairedNoise(0.004 * math.sqrt(2), 20), trial).interval()
        covered += low <= truth <= high
    assert covered >= 180
    exact = read_local([[0.05 * (o - 0.3) ** 2 for o in (-1, 0, 1)]], None)
    assert exact.offset == pytest.approx(0.3) and exact.regret == pytest.approx(truth) and exact.interval() is None


def test_sweeps_of_two_sizes_err_independently_so_the_trend_is_unsure():
    losses = [[2.05, 2.0, 2.05]]
    found = {1: read_local(losses, PairedNoise(0.01, 30), 0), 4: read_local(losses, PairedNoise(0.01, 30), 1)}
    near, far = extrapolate(found, 4), extrapolate(found, 64)
    assert near.slope == far.slope == 0 and far.interval[1] > 4 * near.interval[1]


def test_without_known_noise_there_is_no_interval_and_no_verdict():
    found = {1: read_local([[2.05, 2.0, 2.05]], None), 4: read_local([[2.05, 2.0, 2.05]], None)}
    far = extrapolate(found, 64)
    assert far.interval is None and verdict(far.regret, far.interval) == "undecided"
    assert verdict(None, None) == "fails"
    assert verdict(0.001, (0.0, 0.004)) == "holds" and verdict(0.1, (0.05, 0.2)) == "fails"


def test_a_study_with_more_noise_is_not_judged_laxer():
    """The limit is fixed: 0.02 nats fail, and do not come to hold because the seeds differ by more."""
    assert verdict(0.02, (0.015, 0.025)) == "fails" and verdict(0.005, (0.0, 0.03)) == "undecided"


def test_what_has_no_minimum_within_reach_decides_nothing():
    """Monotone, or upside down, is no measurement of an optimum; only a plan that diverged fails all the same."""
    quiet = PairedNoise(1e-4, 30)
    for triple in ([2.5, 2.2, 1.95], [2.0, 2.1, 1.9]):
        assert as_json(read_local([triple], quiet), 0.01)["verdict"] == "undecided"
    assert as_json(read_local([[2.4, 2.1, 2.0]], quiet), 0.01)["verdict"] == "fails"
    assert as_json(read_local([[2.1, math.inf, 2.0]], quiet), 0.01)["verdict"] == "fails"


@pytest.mark.parametrize(
    ("local", "target", "inside", "verdict", "command"),
    [
        (["holds", "holds"], ["holds"], True, "holds", None),
        (["holds", "fails"], ["fails"], True, "fails", "tune"),
        (["undecided", "undecided"], ["fails"], True, "undecided", "verify"),
        (["undecided", "undecided"], ["undecided"], False, "undecided", "tune"),
        (["holds", "holds"], ["fails"], True, "fails", "tune"),
    ],
)
def test_verify_fails_on_no_better_ground_than_its_sizes_and_gives_the_command(
    local, target, inside, verdict, command, parsed
):
    chosen, _ = tuning([], [])
    row = {"rule": "looped", "along": "lr", "axis": "loops", "label": "N = 4"}
    rows = [{**row, "inside": inside, "verdict": word} for word in local]
    found = {"local": rows, "target": [{**row, "verdict": word} for word in target]}
    found["verdict"] = _overall(chosen, found)
    assert found["verdict"] == verdict
    told = after_verifying(Path("runs/t"), chosen, found, "--loops", "2,4", "--seeds", "3", share=0.3)
    assert "\n" not in told and bool(told) == bool(command)
    if command:
        ((name, given),) = parsed(told)
        assert name == command and given["objective"] == "a.py:f"
        wanted = (
            {"seeds": 3, "loops": (2, 4)}
            if name == "verify"
            else {"out": Path("runs/t-nearer"), "tuned": "lr,strength"}
        )
        assert given.items() >= wanted.items()
        assert name == "verify" or given["proxy"] == "loops=2,layers=1,width=64,steps=100,batch=8"


@pytest.mark.parametrize(("code", "model"), [(None, None), (UserCode("model", "a.py:f", "0"), "a.py:f")])
def test_a_plan_that_holds_ends_with_the_command_that_trains_it(code, model, parsed):
    chosen = replace(tuning([], [])[0], user_code=code)
    found = {"local": [], "target": [], "verdict": "holds"}
    ((name, given),) = parsed(after_verifying(Path("runs/t"), chosen, found))
    assert name == "train" and given["model"] == model
    assert Path("runs/t/tuned.toml") in (given["config"], given["tuned"])


@pytest.mark.parametrize(
    ("verdict", "bound", "told"), [("undecided", 0.0221, 1), ("undecided", None, 0), ("fails", 0.1, 0)]
)
def test_what_is_not_decided_but_bounded_can_be_trained_all_the_same(verdict, bound, told, parsed):
    chosen = replace(tuning([], [])[0], user_code=UserCode("model", "a.py:f", "0"))
    said = if_bounded(Path("runs/t"), chosen, {"verdict": verdict, "bound": bound})
    assert len(said) == told
    for line in said:
        assert line.startswith("Train it if 0.022 nats are nothing to you") and parsed(line)[0][0] == "train"


@pytest.mark.parametrize(("share", "dear"), [(0.3, False), (1.75, True)])
def test_a_verification_that_costs_more_than_a_sweep_says_so(share, dear):
    found = {"local": [], "target": [], "verdict": "undecided"}
    told = after_verifying(Path("runs/t"), tuning([], [])[0], found, "--seeds", "3", share=share)
    assert ("more than a sweep at the target" in told) is dear


@pytest.mark.parametrize(
    ("edges", "begin"), [([], "Tuned at"), (["strength"], "Tuned at"), (["lr"], "Not tuned yet, lr near")]
)
def test_a_rate_at_the_end_of_its_range_is_said_first(edges, begin):
    assert _begun(tuning([], [])[0], {"edges": edges}).startswith(begin)


@pytest.mark.parametrize(
    ("ends", "allowed", "said"),
    [
        ((0.004, 0.0092), 0.01, "The plan holds: it loses at most 0.0092 nats (95 %)."),
        (
            (0.004, 0.0221),
            0.01,
            "The data do not decide whether the plan holds: it loses at most 0.022 nats (95 %), and 0.01 is allowed.",
        ),
        ((0.004, 0.0221), 0.03, "The plan holds: it loses at most 0.022 nats (95 %)."),
        ((0.004, None), 0.01, "The data do not decide whether the plan holds."),
    ],
)
def test_a_verification_says_what_the_plan_loses_at_most_so_that_a_person_can_decide(ends, allowed, said):
    chosen, _ = tuning([], [])
    rows = [
        {
            "rule": "looped",
            "inside": True,
            "interval": None if end is None else [0.0, end],
            "verdict": verdict(0.0, None if end is None else (0.0, end), allowed),
        }
        for end in ends
    ]
    others = {"rule": "looped-complete", "inside": True, "interval": [0.0, 9.0], "verdict": "undecided"}
    found = {"local": [rows[0], others], "target": [rows[1]], "allowed_regret": allowed}
    found["verdict"] = _overall(chosen, found)
    found["bound"] = _bound(chosen, found)
    assert _headline(found) == said


@pytest.mark.parametrize("tolerance", [0.0, -0.01, math.nan, math.inf])
def test_a_tolerance_is_a_positive_number(tolerance):
    with pytest.raises(UserError, match="positive number of nats"):
        Checks(tolerance=tolerance)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"edges": ["strength"]}, {"sets": ("model.strength=0.125",), "out": Path("runs/t-again")}),
        ({"tied": [{"lr": 0.01}]}, {"seeds": 6, "config": None, "out": Path("runs/t")}),
        ({"intervals": {"lr": None}}, {"trials": 32, "config": None, "out": Path("runs/t")}),
        ({}, None),
    ],
)
def test_what_a_tuning_leaves_open_comes_with_a_command(found, wanted, parsed):
    chosen, _ = tuning([], [])
    usual = {"edges": [], "tied": [], "intervals": {"lr": [0.01, 0.02]}, "values": {"lr": 0.015, "strength": 0.125}}
    told = after_tuning(Path("runs/t"), chosen, {"proxy": {**usual, **found}})
    assert [name for name, _ in parsed(told)] == (["tune"] if wanted else [])
    assert wanted is None or parsed(told)[0][1].items() >= wanted.items()
    plan = {"settings": chosen.to_json(), "cost": {"pays_share": 0.3}}
    ((_, given),) = parsed(about_looping(Path("runs/t"), plan))
    assert given["pays"] == 3 and about_looping(Path("runs/t"), {**plan, "pays": {}}) == ""


def test_the_noise_comes_from_the_checks_then_the_tuning_then_its_fit_and_else_from_nowhere():
    fit = {"noise": 0.03, "freedom": 4}
    plan = {"proxy": {"paired_noise": 0.02, "paired_freedom": 2, "surface": fit}}
    one, two = [[2.1, 2.0, 2.2]], [[2.1, 2.0, 2.2], [2.12, 2.0, 2.2]]
    assert known_noise(plan, [one, two])[0].freedom == 2 and "these checks" in known_noise(plan, [two])[1]
    assert known_noise(plan, [one])[0] == PairedNoise(0.02, 2)
    plan["proxy"]["paired_noise"] = None
    assert known_noise(plan, [one])[0] == PairedNoise(0.03 * math.sqrt(2), 4)
    plan["proxy"]["surface"] = None
    assert known_noise(plan, [one])[0] is None


def test_both_exponents_are_compared_over_layers_and_what_diverged_is_said():
    def table(rule, *losses):
        return {Probe("layers", Size(1, 4, 8, 9, 2), rule, "lr"): [[9.0, loss, 9.0] for loss in losses]}

    both = table("looped", 2.10, 2.12) | table("looped-complete", 2.00, 2.02)
    assert exponents(both, PairedNoise(0.005, 10))[0]["says"] == "b = 1 is better by 0.1000 nats"
    assert exponents(both, PairedNoise(0.5, 10))[0]["says"] == "the data do not decide"
    assert "no noise is known" in exponents(both, None)[0]["says"]
    lost = table("looped", math.inf) | table("looped-complete", 2.0)
    assert exponents(lost, None)[0] == {"layers": 4, "difference": None, "interval": None, "says": "b = 1/2 diverged"}


def test_numbers_carry_the_digits_that_their_interval_supports():
    assert spoken(0.013812, [0.0101, 0.0213]) == "0.014 [0.01, 0.021]"
    assert spoken(0.013812, [0.0138119, 0.0138121]) == "0.01381 (to these digits)"
    assert nats(0.00001, [0.0, 0.00002]) == "0.0000 nats (to these digits)"
    assert in_seed_noise(0.01, 0.0) == "seeds change nothing"


def tuning(points, losses):
    """The settings and records of an exploration of rate and strength, in octaves from the config's."""
    base = parse_values({"model": {"width": 64}, "optim": {"lr": 2.0**-6}})
    settings = TuneSettings(
        base, Size(1, 1, 64, 100, 8), Size(4, 1, 64, 100, 8), user_code=UserCode("objective", "a.py:f", "0")
    )
    records = []
    for i, ((rate, strength), loss) in enumerate(zip(points, losses, strict=True)):
        values = {"lr": 2.0 ** (rate - 6), "strength": 2.0**strength}
        cell = Cell(rule="looped", loops=1, lr=values["lr"], values=values, seed=0, explored=True)
        records.append(Trial(key=str(i), loss=loss, diverged=loss is None, cell=cell))
    return settings, records


def found_with(noise, seeds=3):
    """What verification finds when the losses of each value have a noise of their own, in nats."""
    settings, rng = tuning([], [])[0], np.random.default_rng(1)
    center = {"lr": 2.0**-6, "strength": 1.0}
    proxy = {"values": center, "seed_noise": 0.1, "paired_noise": None, "surface": None}
    plan, taken, trials = {"settings": settings.to_json(), "proxy": proxy}, probes(settings, (2, 4), (), (), False), {}
    for probe in taken:
        for key, (cell, _) in jobs_of(settings, probe, center, seeds).items():
            drawn, off = rng.standard_normal(), math.log2(cell["values"][probe.along] / center[probe.along])
            if key not in trials:  # the plan's own trials are shared
                loss = 2 + 0.05 * off**2 + (noise[probe.along] * drawn if off else 0.0)
                trials[key] = Trial(key=key, loss=loss, diverged=False, cell=Cell.model_validate(cell))
    return findings(plan, Checks(seeds=seeds), taken, [], trials, 0.1)


def test_the_noise_of_one_value_is_no_noise_of_another():
    """An octave of the rate moves a seed by more than one of the strength does; the mean of both fits neither."""
    quiet, loud = (found_with({"lr": lr, "strength": 0.002}) for lr in (0.002, 0.02))
    widths = [
        {row["label"]: row["interval"][1] - row["interval"][0] for row in found["local"]} for found in (quiet, loud)
    ]
    assert set(quiet["noise"]) == {"lr", "strength"}
    for label, wide in widths[1].items():
        if "strength" in label:
            assert wide == widths[0][label]
        else:
            assert wide > 3 * widths[0][label]


@given(st.floats(-11, -3), st.floats(-9, -1), st.floats(-3, 3))
def test_the_outer_rate_is_searched_as_a_rate_and_kept_as_a_factor(hidden, outer, strength):
    """Where the hidden rate is says nothing of the range of the other, and no digit is lost on the way."""
    size = Size(1, 1, 64, 100, 8)
    settings = TuneSettings(parse_values({"model": {"width": 64}, "optim": {"lr": 2.0**-6}}), size, size)
    assert bounds(settings)["outer_lr"] == (-9, 1)
    point = {"lr": hidden, "strength": strength, "outer_lr": outer}
    values = to_values(point)
    assert math.log2(values["lr"] * values["outer_lr"]) == pytest.approx(outer, abs=2e-3)
    assert to_point(values) == pytest.approx(point, abs=2e-3)


def test_an_interval_that_is_only_the_explored_range_is_none_and_it_says_why():
    points = RNG.uniform(-2, 2, (16, 2)).tolist()
    saddle = [2 + 0.06 * x**2 - 0.05 * y**2 for x, y in points]
    found = decide(*tuning(points, saddle))
    assert found["intervals"] == {"lr": None, "strength": None} and found["open"] == {}
    assert found["interval_note"] == "no intervals: the surface has no minimum inside what was explored"
    assert found["surface"]["inside"] is False, "the noise of the fit is known all the same"
    noise = 0.3 * RNG.standard_normal(16)
    lost = decide(*tuning(points, list(2 + noise)))
    assert lost["intervals"]["strength"] is None and "no" in lost["interval_note"]


def test_an_interval_that_ends_with_the_points_on_one_side_is_called_open():
    rng = np.random.default_rng(1)  # of its own: the other tests may run before or not
    points = rng.uniform(-2, 2, (24, 2)).tolist()
    losses = [2 + 0.06 * x**2 + 0.05 * (y - 1.4) ** 2 + 0.02 * rng.standard_normal() for x, y in points]
    found = decide(*tuning(points, losses))
    assert found["open"] == {"strength": "above"}, found
    assert "that of strength is open above: it ends where the explored points do" in found["interval_note"]
    assert found["intervals"]["lr"][0] < 2.0**-6 < found["intervals"]["lr"][1]


def test_verification_says_whether_looping_pays_from_the_trials_at_the_plan():
    settings = TuneSettings(parse_values({}), Size(1, 1, 64, 100, 16), Size(16, 1, 64, 100, 16))
    seeds = (0.0, 0.2, -0.1)

    def table(loops, at):
        probe = Probe("loops" if loops > 1 else "proxy", settings.proxy.replace(loops=loops), settings.rule, "lr")
        return probe, [[at + seed + 0.1, at + seed, at + seed + 0.1] for seed in seeds]

    tables = dict([table(1, 2.0), table(4, 2.05), table(8, 2.13)])
    found = _pays(settings, tables, {"lr": 0.01, "strength": 1.0})["pays"]
    assert found["loops"] == 8 and found["equal_steps"] == pytest.approx(0.13)
    assert "8 loops are 0.130 nats worse than one" in found["sentence"] and "values of the plan" in found["sentence"]
    assert _pays(settings, dict([table(4, 2.0)]), {}) == {}, "nothing without one loop beside"


def test_a_strength_that_runs_to_its_lower_end_is_read_as_layers_switched_off():
    settings = TuneSettings(parse_values({}), Size(1, 1, 64, 100, 16), Size(16, 1, 64, 100, 16))
    decision = {"edges": ["strength"], "intervals": {}, "interval_note": "no intervals", "decided": "one seed"}
    for strength, read in ((1 / 8, True), (8.0, False)):
        values = {"lr": 2.0**-7, "strength": strength}
        assert at_lower_end(settings, values) is read
        assert any("nearly switched off" in said for said in caveats(settings, {**decision, "values": values})) is read


sys.path.insert(0, str(Path(__file__).parents[1] / "transfer"))
from noise import D32, D64, D64_NONE, INDEPENDENT, World  # noqa: E402


def verified(rng, noise, seeds, drift, offset, loops=(1, 4, 8), target=32):
    """For each interval that verify would print, whether it holds the truth; whether a verdict is false; the bound."""
    world = World(rng, noise, (*loops, target), seeds, drift)
    plan = world.bottom[1] + offset
    tables = [[[world.loss(n, 2.0 ** (plan + k), s) for k in (-1, 0, 1)] for s in range(seeds)] for n in loops]
    found, _ = known_noise({"proxy": {"paired_noise": None, "surface": None}}, tables)
    reads = {n: read_local(table, found, i) for i, (n, table) in enumerate(zip(loops, tables, strict=True))}
    far = extrapolate(reads, target)
    rows = [(n, read.regret, read.interval()) for n, read in reads.items()] + [(target, far.regret, far.interval)]
    held, false, truths = [], [], [noise.curve * (plan - world.bottom[n]) ** 2 for n, _, _ in rows]
    for truth, (_, regret, (low, high)) in zip(truths, rows, strict=True):
        held.append(low - 1e-12 <= truth <= high + 1e-12)
        false.append(verdict(regret, (low, high)) == ("holds" if truth > 0.01 else "fails"))
    return held, false, max(high for _, _, (_, high) in rows) >= max(truths)


def share(noise, seeds, drift, offset, repeats):
    """The shares of intervals that hold the truth, of false verdicts, and of bounds that the worst regret keeps."""
    rng = np.random.default_rng(3)
    return [
        np.mean(found)
        for found in zip(*(verified(rng, noise, seeds, drift, offset) for _ in range(repeats)), strict=True)
    ]


@pytest.mark.parametrize(("noise", "offset"), [(D64, 0.0), (D64_NONE, 0.3)])
def test_the_intervals_of_verify_hold_the_truth_also_when_the_plan_is_the_optimum(noise, offset):
    """A regret is never below 0: draws alone would leave 0 out of every interval."""
    held, false, bounded = share(noise, 3, 0.0, offset, 40)
    assert held >= 0.92 and false <= 0.03 and bounded >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("noise", [D64, D64_NONE, D32, INDEPENDENT])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("drift", "offset"), [(0.0, 0.0), (0.0, 0.3), (-0.15, 0.0), (-0.3, 0.0)])
def test_coverage_and_false_verdicts_of_verify(noise, seeds, drift, offset):
    held, false, bounded = share(noise, seeds, drift, offset, 250)
    assert held >= 0.92 and false <= 0.03 and bounded >= 0.95
