"""Figures that compare rules: paired differences, and the place in the valley to which a rule carries eps."""

from __future__ import annotations

import math

import altair as alt
import pytest
from made_study import result

from loopscale.records import Result, Valley
from loopscale.report import exponent_figure
from loopscale.report.figures import study_figures
from loopscale.report.info import StudyInfo
from loopscale.report.study_page import page

LOOPS = (1, 4, 16)


def valley(loops, half=None, fitted=True):
    """A parabola in log2(eps), lowest at 0.5 / N; `half` is half the width of its intervals."""
    places = [2.0 ** (k / 2) for k in range(-14, 3)]
    losses = [2.3 + 0.02 * (math.log2(eps) + 1 + math.log2(loops)) ** 2 for eps in places]
    points = [
        {"eps": eps, "loss": loss, "interval": half and (loss - half, loss + half), "seeds": 3 if half else 1}
        for eps, loss in zip(places, losses, strict=True)
    ]
    best = {"eps": {"value": 0.5 / loops}, "lr": {"value": 0.01}, "loss": {"value": 2.3}} if fitted else {}
    return Valley.model_validate({"loops": loops, "points": points, **best})


CARRIED = {
    "looped": {n: 0.5 / n for n in LOOPS},
    "sqrt": {n: 0.5 / n**0.5 for n in LOOPS},
    "none": dict.fromkeys(LOOPS, 0.5),
}
VALLEYS = [valley(n) for n in LOOPS]


def test_each_rule_stands_at_the_loss_that_it_costs():
    figure = exponent_figure(VALLEYS, CARRIED)
    alt.Chart.from_dict(figure.spec())
    at = {(mark.panel, mark.series): mark for mark in figure.marks if mark.series in CARRIED}
    assert at["N = 16", "looped"].y == pytest.approx(0)
    assert at["N = 16", "sqrt"].y == pytest.approx(0.02 * 2**2)
    assert at["N = 16", "none"].y == pytest.approx(0.02 * 4**2)
    assert at["N = 16", "none"].said["what"] == "carried by without a scale (rule none)"
    assert not any(panel == "N = 1" for panel, _ in at)  # nothing has been carried there


def test_a_rule_that_leaves_what_was_tried_stands_at_the_edge_and_says_so():
    figure = exponent_figure(VALLEYS, {"looped": {16: 2.0**-20}, "none": {16: 2.0**9}})
    looped, none = (mark for mark in figure.marks if mark.series in ("looped", "none"))
    assert looped.said["costs"] == none.said["costs"] == "outside what was tried"
    low, high = figure.x.span
    assert low < looped.x < -7 and 1 < none.x < high
    assert looped.hollow and none.hollow and not looped.shape  # drawn hollow, in the shape of its series


def test_a_valley_without_a_vertex_and_with_intervals_stays_inside_its_panel():
    figure = exponent_figure([valley(4, fitted=False), valley(16, half=5.0)], CARRIED)
    assert not any(mark.series == "best eps" and mark.panel == "N = 4" for mark in figure.marks)
    low, high = figure.y.span
    bars = [mark.up for mark in figure.marks if mark.panel == "N = 16" and mark.up]
    assert bars and all(low <= bottom < top <= high for bottom, top in bars)


def test_paired_differences_come_first_with_their_sentences():
    pair = {"rules": ["looped", "none"], "loops": 16, "sentence": "looped minus none: slope +0.33.", "slope": 0.33}
    record = result() | {"paired": [pair | {"slope_interval": [0.2, 0.46], "loss": -0.25, "loss_interval": None}]}
    study = StudyInfo(Result.model_validate(record), ())
    figure = study_figures(study)["paired-differences"]
    assert [(mark.x, mark.across) for mark in figure.marks] == [(0.33, (0.2, 0.46)), (-0.25, None)]
    text = page(study)
    assert text.index("The rules compared") < text.index("Loss over learning rate") and pair["sentence"] in text
    assert "none, one seed" in text and "without a scale (rule none)" in text
