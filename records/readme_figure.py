"""README's picture of a study: loss over the learning rate, a panel without transfer and one with."""

from __future__ import annotations

from dataclasses import replace

from loopscale.records import Result
from loopscale.report import render
from loopscale.report.figures import loss_over_rate, rule_name
from loopscale.report.info import StudyInfo
from loopscale.report.palette import number

_LARGE = {"labelFontSize": 15, "titleFontSize": 15, "symbolSize": 130, "columnPadding": 22}


def readme_figure(result: Result, stacked: bool = False) -> bytes:
    """Draw one SVG from a study's result: loss over rate, a panel without transfer and one with."""
    names = compared(result)
    study = StudyInfo(result.model_copy(update={"rules": {name: result.rules[name] for name in names}}), ())
    drawn = loss_over_rate(study)
    titles = {rule_name(name): _title(result, name) for name in names}
    marks = [mark._replace(panel=titles[mark.panel]) for mark in drawn.marks]
    guides = [guide._replace(panel=titles[guide.panel]) for guide in drawn.guides]
    figure = replace(drawn, marks=marks, guides=guides, panels=list(titles.values()), height=230 if stacked else 300)
    spec = figure.spec(columns=1 if stacked else 2, width=400 if stacked else 330)
    config = spec["config"]
    config["axis"] |= _LARGE
    config["legend"] |= _LARGE
    config["header"] |= {"labelFontSize": 16}
    config["axisY"] |= {"minExtent": 50, "maxExtent": 50}
    return render(spec)["svg"]


def compared(result: Result) -> list[str]:
    """Return the two rules to show: one that does not claim transfer ("none" if there), then one that does."""
    rules = result.rules
    against = sorted((n for n, r in rules.items() if not r.claims_transfer), key=lambda name: name != "none")[:1]
    chosen = sorted((n for n, r in rules.items() if r.claims_transfer), key=lambda name: name != "looped")[:1]
    return against + chosen or list(rules)[:1]


def _title(result: Result, name: str) -> str:
    """Return what is seen: how far the best rate moves."""
    slope = result.rules[name].slope
    words = "without a scale" if name == "none" else "eps = 1 / (N \N{SQUARE ROOT}L)" if name == "looped" else name
    return words if slope is None else f"{words}: best rate moves {number(slope, 2)}"
