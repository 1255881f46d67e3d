"""The numbers behind the figures: laws over the made-up study."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_study import LOOPS, RATES, result

from loopscale.records import Result, RuleRecord
from loopscale.report.info import (
    StudyInfo,
    curves,
    drift_line,
    study_info,
)
from loopscale.report.palette import log_ticks, looks, nice_ticks, number, power, sequential, whole_ticks


def test_curves_hold_every_point_of_the_result(study):
    info, raw = study_info(study), json.loads((study / "result.json").read_text())
    for name, rule in info.rules.items():
        for curve in curves(rule):
            points = raw["rules"][name]["points"][str(curve.loops)]
            assert [(p.lr, p.loss, list(p.losses)) for p in curve.points] == [
                (p["lr"], p["loss"], p["losses"]) for p in points
            ]
            assert curve.optimum.lr == raw["rules"][name]["optima"][str(curve.loops)]["lr"]


def test_every_cell_and_every_diverged_seed_is_counted(study):
    info, raw = study_info(study), json.loads((study / "result.json").read_text())
    assert info.any_diverged
    for name, rule in info.rules.items():
        cells = [point.lost for curve in curves(rule) for point in curve.points]
        assert len(cells) == len(LOOPS) * len(RATES)
        losses = [loss for row in raw["rules"][name]["points"].values() for p in row for loss in p["losses"]]
        assert sum(diverged for diverged, _ in cells) == losses.count(None)
        assert sum(seeds for _, seeds in cells) == len(losses)


def test_the_window_holds_every_optimum_and_every_rate(study):
    info = study_info(study)
    view = info.window
    for rule in info.rules.values():
        for best in rule.optima.values():
            assert view.rate_low < math.log2(best.lr) < view.rate_high
            assert view.loss_low < best.loss < view.loss_high


@given(rise=st.floats(1, 1e6))
def test_one_huge_loss_does_not_flatten_the_basins(rise):
    record = result()
    record["rules"]["none"]["points"]["16"][0]["loss"] = 9.0 + rise
    view = StudyInfo(Result.model_validate(record), ()).window
    assert view.loss_high < 4


def test_the_drift_line_has_the_fitted_slope_and_passes_the_centre(study):
    for rule in study_info(study).rules.values():
        (x0, y0), (x1, y1) = drift_line(rule)
        assert (y1 - y0) / (x1 - x0) == pytest.approx(rule.slope)
        centre = sum(math.log2(best.lr) for best in rule.optima.values()) / len(rule.optima)
        assert (y0 + y1) / 2 == pytest.approx(centre)


def test_without_a_slope_the_line_joins_the_optima(study):
    rule = study_info(study).rules["looped"].model_copy(update={"slope": None})
    assert [x for x, _ in drift_line(rule)] == [0, 1, 2, 3, 4]


def test_streams_come_from_the_largest_loops_near_the_optimum(study):
    info = study_info(study)
    found = {stream.rule: stream for stream in info.streams}
    assert set(found) == set(info.rules)
    for name, stream in found.items():
        assert stream.loops == max(LOOPS) and len(stream.initial) == max(LOOPS) + 1
        assert abs(math.log2(stream.lr / info.rules[name].optima[16].lr)) <= 0.5
    assert found["none"].initial[-1] > found["sqrt"].initial[-1] > found["looped"].initial[-1]


def test_strengths_are_read_from_the_trials_or_from_the_fits(study):
    info = study_info(study)
    found = info.strength_curves
    assert {curve.loops for curve in found} == {1, 16}
    assert all(curve.losses[1] == min(curve.losses) for curve in found)
    best = {"lr": 0.01, "loss": 2.0}
    fits = {"looped": {"2": {"0.5": best, "1": best | {"loss": 2.5}}, "4": {"1": best}}}
    fitted = StudyInfo(Result.model_validate(result() | {"by_strength": fits}), ()).strength_curves
    assert [(c.rule, c.loops, c.strengths, c.losses) for c in fitted] == [("looped", 2, (0.5, 1.0), (2.0, 2.5))]


def test_a_missing_optimum_is_no_optimum():
    record = result()["rules"]["none"]
    record["optima"]["16"], record["optima"]["8"] = None, {"lr": None, "loss": None}
    assert set(RuleRecord.model_validate(record).optima) == {1, 2, 4}


@given(low=st.floats(-1e3, 1e3), span=st.floats(1e-3, 1e3))
def test_ticks_lie_inside_and_are_few(low, span):
    ticks = nice_ticks(low, low + span)
    assert len(ticks) <= 10 and all(low - 1e-9 <= tick <= low + span + 1e-9 for tick in ticks)
    assert len(whole_ticks(low, low + span)) <= 11


@given(low=st.floats(1e-9, 1e6), factor=st.floats(4, 1e9))
def test_log_ticks_lie_inside(low, factor):
    assert all(0.9 * low <= tick <= 1.1 * low * factor for tick in log_ticks(low, low * factor))


@given(st.lists(st.text(max_size=6), max_size=12, unique=True))
def test_known_rules_keep_their_look_whatever_stands_beside_them(names):
    alone = looks(["looped", "sqrt", "none"])
    together = looks([*names, "looped", "sqrt", "none"])
    assert all(together[name] == alone[name] for name in alone)
    assert len({inks.light for inks in sequential(6)}) == 6


@given(st.floats(-1e6, 1e6))
def test_numbers_read_back(value):
    text = number(value).replace("\N{MINUS SIGN}", "-")
    assert float(text) == pytest.approx(value, abs=5e-4)
    assert power(2.0**-6) == "2^-6"


def test_a_study_is_read_and_its_verdict_judged_without_torch():
    """Importing torch would be most of the time of `loopscale report`."""
    script = (
        "import sys\nfrom loopscale.report import write_report\nfrom loopscale.report.study_page import sections\n"
        "from loopscale.transfer.verdict import judge\nassert judge(None, None) == 'undecided'\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_two_of_many_series_look_alike():
    made = looks([f"branch {number}" for number in range(25)])
    assert len(set(made.values())) == 25
