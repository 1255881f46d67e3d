"""The page of a study that still runs: what initialisation says at once, then the losses as trials end."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loopscale.files import write_text
from loopscale.records import Point, Result, RuleRecord
from loopscale.report.figure import Axis, Figure, Mark
from loopscale.report.figures import log_axis, loss_over_rate, rule_name
from loopscale.report.info import StudyInfo
from loopscale.report.page import Section, render_page
from loopscale.report.palette import looks, number
from loopscale.report.study_page import READINGS, write_report

if TYPE_CHECKING:
    from loopscale.transfer import Arm, Study, StudyPlan

_LAW = (
    "How much the stream has grown when it leaves the last visit, in units of its size at the entry, in the untrained "
    "networks of this study. A rule holds the law when its line is level: then a visit changes the stream as much at "
    "many loops as at few, and so does a step of a given rate. A line that climbs lets the best rate fall."
)
_SO_FAR = " The fitted optima and the verdicts come when the last trial has ended."


def write_study_page(folder: Path) -> Path:
    """Write report.html of a study, finished or not, from what lies on disk; return its path.

    Raises `UserError` when the folder holds no study, or a damaged one.
    """
    from loopscale.transfer import Study

    if (folder / "result.json").exists():
        return write_report(folder)
    return StudyPage(Study.load(folder)).write()


def law_figure(plan: StudyPlan) -> Figure:
    """Draw the growth of the stream over N for each rule of the plan, in untrained networks."""
    from loopscale.transfer import stream_growth

    growth = stream_growth(plan)
    marks = [
        Mark(math.log2(loops), value, rule,
             {"rule": rule_name(rule), "N": str(loops), "growth of the stream": number(value, 2)}, line="solid")
        for (rule, loops), value in growth.items()
    ]  # fmt: skip
    return Figure(
        "law-at-initialisation",
        "Growth of the residual stream over the number of loops for each rule, before training.",
        Axis("loops N", {math.log2(n): str(n) for n in sorted(plan.loops)}),
        log_axis("stream at the end / at the entry", [1.0, *growth.values()]),
        looks(plan.rules),
        marks,
        labels={rule: rule_name(rule) for rule in plan.rules},
    )


class LivePage(ABC):
    """The page of a running study, for its driver: `update` redraws it, seldom enough to cost little."""

    def __init__(self, every: float) -> None:
        self.every, self._due = every, 0.0

    def update(self) -> bool:
        """Write the page unless it was written in the last `every` seconds, or drawing would take over 5 % of the time."""
        began = time.monotonic()
        if began < self._due:
            return False
        self.write()
        ended = time.monotonic()
        self._due = ended + max(self.every, 20 * (ended - began))
        return True

    @abstractmethod
    def write(self) -> Path:
        """Write the page as the study stands now; return its path."""


class StudyPage(LivePage):
    """The page of a running study. The trials stay in the study that is given; nothing is read from disk."""

    def __init__(self, study: Study, every: float = 10.0) -> None:
        super().__init__(every)
        self.study = study

    def write(self) -> Path:
        """Write the page as the study stands now; return its path."""
        done, left = len(self.study.trials), len(self.study.missing())
        parts = [] if self.law is None else [Section("The law at initialisation", figure=self.law, how_to_read=_LAW)]
        if done:
            reading = READINGS["loss-over-rate"] + _SO_FAR
            parts.append(Section("Loss over learning rate so far", figure=self._losses(), how_to_read=reading))
        kind = f"loopscale transfer study, preset {self.study.plan.preset}, running"
        lead = f"{done} of {done + left} trials have ended."
        text = render_page("Does the best learning rate stay put when the loops grow?", lead, parts, [], kind=kind,
                           refresh=15)  # fmt: skip
        write_text(self.study.folder / "report.html", text)
        return self.study.folder / "report.html"

    @cached_property
    def law(self) -> Figure | None:
        """Growth of the stream over N for each rule, measured before any training; None for a user's model."""
        return None if self.study.plan.user_code is not None else law_figure(self.study.plan)

    def _losses(self) -> Figure:
        from loopscale.transfer import Arm

        plan, strength = self.study.plan, self.study.plan.strengths[0]
        rules = {
            rule: RuleRecord(
                verdict="", sentence="", points={n: self._points(Arm(rule, strength, n)) for n in sorted(plan.loops)}
            )
            for rule in plan.rules
        }
        return loss_over_rate(StudyInfo(Result(sentence="", rules=rules, loops=plan.loops), ()))

    def _points(self, arm: Arm) -> tuple[Point, ...]:
        by_rate: dict[float, list[float | None]] = {}
        for (rate, _), loss in sorted(self.study.losses(arm).items()):
            by_rate.setdefault(rate, []).append(loss if math.isfinite(loss) else None)
        return tuple(
            Point(
                lr=rate,
                loss=None if None in losses else sum(x for x in losses if x) / len(losses),
                losses=tuple(losses),
            )
            for rate, losses in by_rate.items()
        )
