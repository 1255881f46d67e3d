"""The page of a study that still runs: what initialisation says at once, then the losses as trials end."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loopscale.records import Result
from loopscale.report.figure import Axis, Figure, Mark
from loopscale.report.figures import log_axis, loss_over_rate, rule_name
from loopscale.report.info import StudyInfo
from loopscale.report.page import Section, explained, render_page, write_page
from loopscale.report.palette import looks, number
from loopscale.report.study_page import TITLE, write_report

if TYPE_CHECKING:
    from loopscale.transfer import StudyPlan

_SO_FAR = "The losses so far: the fitted optima and the verdicts come when the last trial has ended."


def write_study_page(folder: Path) -> Path:
    """Write report.html of a study, finished or not; raises `UserError` when the folder holds none, or a damaged one."""
    from loopscale.transfer import Study

    if (folder / "result.json").exists():
        return write_report(folder)
    return StudyPage(Study.load(folder)).write_looked_at()


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
    """The page of a running study, for its driver: `update` redraws it, seldom enough to cost little.

    The trials stay in the study that is given; nothing is read from disk.
    """

    TITLE: ClassVar[str]
    NOUN: ClassVar[str]
    COMMAND: ClassVar[str]

    def __init__(self, study: Any, every: float = 10.0) -> None:
        self.study, self.every, self._due = study, every, 0.0

    def update(self) -> bool:
        """Write the page unless it was written in the last `every` seconds, or drawing would take over 5 % of the time."""
        began = time.monotonic()
        if began < self._due:
            return False
        self.write()
        ended = time.monotonic()
        self._due = ended + max(self.every, 20 * (ended - began))
        return True

    def write(self, stopped: str = "") -> Path:
        """Write the page as the study stands now; return its path. `stopped` is said of a study that nobody drives."""
        lead, parts = self.so_far()
        if self.law is not None:
            parts.insert(0, explained(self.law))
        kind = f"loopscale {self.NOUN}, {'stopped' if stopped else 'running'}"
        text = render_page(self.TITLE, f"{lead} {stopped}".strip(), parts, [], kind=kind, refresh=0 if stopped else 15)
        return write_page(self.study.folder, text)

    def write_looked_at(self) -> Path:
        """Write the page of a study that this process does not drive: perhaps another does, perhaps none."""
        if self.study.driven():
            return self.write()
        command = f"loopscale {self.COMMAND}, with the options it was begun with,"
        if self.study.left():
            return self.write(f"No process runs it: {command} goes on where it stopped.")
        return self.write(f"No trial is missing, only the result: {command} writes it and trains nothing.")

    @abstractmethod
    def so_far(self) -> tuple[str, list[Section]]:
        """Return the lead sentence, and what the trials show as they stand now."""

    @cached_property
    def law(self) -> Figure | None:
        """Growth of the stream over N for each rule, measured before any training; None for a user's model."""
        from loopscale.transfer import StudyPlan

        plan = self.study.plan
        rules = getattr(plan, "rules", ("looped", "sqrt", "none"))
        return None if plan.user_code is not None else law_figure(StudyPlan(plan.base, rules, plan.loops))


class StudyPage(LivePage):
    """The page of a running study of rules."""

    TITLE, NOUN, COMMAND = TITLE, "transfer study", "transfer"

    def so_far(self) -> tuple[str, list[Section]]:
        """Return how many trials ended, and their losses."""
        done, left = len(self.study.trials), len(self.study.missing())
        lead = f"{done} of {done + left} trials have ended."
        return lead, [explained(self._losses(), _SO_FAR)] if done else []

    def _losses(self) -> Figure:
        from loopscale.transfer import Arm
        from loopscale.transfer.result import points

        study, plan = self.study, self.study.plan
        rules = {
            rule: {
                "verdict": "",
                "sentence": "",
                "points": {n: points(study.losses(Arm(rule, plan.strengths[0], n))) for n in sorted(plan.loops)},
            }
            for rule in plan.rules
        }
        result = Result.model_validate({"sentence": "", "rules": rules, "loops": plan.loops})
        return loss_over_rate(StudyInfo(result, ()))
