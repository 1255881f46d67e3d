"""Numbers of a study or a run -> figures and one self-contained interactive page.

Public names load on first use, so that `import loopscale.report` needs neither Altair nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopscale.lazy import on_first_use

if TYPE_CHECKING:
    from loopscale.report.exponent_page import ExponentPage, write_exponent_report
    from loopscale.report.figure import Axis, Figure, Guide, Mark, render
    from loopscale.report.info import study_info
    from loopscale.report.live_page import StudyPage, write_study_page
    from loopscale.report.page import Section, Table, render_page
    from loopscale.report.run_page import write_run_report
    from loopscale.report.study_page import readme_figure, write_figures, write_report
    from loopscale.report.tune_page import write_tune_report
    from loopscale.report.valleys import exponent_figure

__all__ = [
    "Axis",
    "ExponentPage",
    "Figure",
    "Guide",
    "Mark",
    "Section",
    "StudyPage",
    "Table",
    "exponent_figure",
    "readme_figure",
    "render",
    "render_page",
    "study_info",
    "write_exponent_report",
    "write_figures",
    "write_report",
    "write_run_report",
    "write_study_page",
    "write_tune_report",
]

__getattr__ = on_first_use(
    __name__,
    {
        "exponent_page": "ExponentPage write_exponent_report",
        "valleys": "exponent_figure",
        "figure": "Figure Axis Guide Mark render",
        "page": "Section Table render_page",
        "live_page": "StudyPage write_study_page",
        "info": "study_info",
        "study_page": "readme_figure write_figures write_report",
        "run_page": "write_run_report",
        "tune_page": "write_tune_report",
    },
)
