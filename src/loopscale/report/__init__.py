"""Numbers of a study or a run -> figures and one self-contained interactive page.

Public names load on first use, so that `import loopscale.report` needs neither Altair nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopscale.report.exponent_page import ExponentPage, write_exponent_report
    from loopscale.report.figure import Axis, Figure, Guide, Mark, render
    from loopscale.report.info import study_info
    from loopscale.report.live_page import StudyPage, write_study_page
    from loopscale.report.page import Section, Table, render_page
    from loopscale.report.readme import readme_figure
    from loopscale.report.run_page import write_run_report
    from loopscale.report.study_page import write_figures, write_report
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

_HOMES = {
    "ExponentPage": "exponent_page",
    "write_exponent_report": "exponent_page",
    "exponent_figure": "valleys",
    "Figure": "figure",
    "Axis": "figure",
    "Guide": "figure",
    "Mark": "figure",
    "render": "figure",
    "Section": "page",
    "StudyPage": "live_page",
    "Table": "page",
    "render_page": "page",
    "readme_figure": "readme",
    "study_info": "info",
    "write_figures": "study_page",
    "write_report": "study_page",
    "write_run_report": "run_page",
    "write_study_page": "live_page",
    "write_tune_report": "tune_page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
