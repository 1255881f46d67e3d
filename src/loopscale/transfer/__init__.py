"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict.

Public names load on first use, so that whoever reads a study's numbers needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopscale.lazy import on_first_use

if TYPE_CHECKING:
    from loopscale.records import Estimate
    from loopscale.transfer.estimate import Optimum, best_rate, complete, fit_optimum, over_seeds, paired, student95
    from loopscale.transfer.plan import Arm, Cell, StudyPlan, seeds_by_cost, stream_growth
    from loopscale.transfer.presets import PRESETS, Preset, get_preset
    from loopscale.transfer.result import Curves, failed, run_study, summarise
    from loopscale.transfer.study import Study, wanted
    from loopscale.transfer.verdict import Beside, does_looping_pay, fit_slope, judge, one_shot_regret

__all__ = [
    "PRESETS",
    "Arm",
    "Beside",
    "Cell",
    "Curves",
    "Estimate",
    "Optimum",
    "Preset",
    "Study",
    "StudyPlan",
    "best_rate",
    "complete",
    "does_looping_pay",
    "failed",
    "fit_optimum",
    "fit_slope",
    "get_preset",
    "judge",
    "one_shot_regret",
    "over_seeds",
    "paired",
    "run_study",
    "seeds_by_cost",
    "stream_growth",
    "student95",
    "summarise",
    "wanted",
]

__getattr__ = on_first_use(
    __name__,
    {
        "plan": "Arm Cell StudyPlan seeds_by_cost stream_growth",
        "result": "Curves failed run_study summarise",
        "estimate": "Estimate Optimum best_rate complete fit_optimum over_seeds paired student95",
        "presets": "PRESETS Preset get_preset",
        "study": "Study wanted",
        "verdict": "Beside does_looping_pay fit_slope judge one_shot_regret",
    },
)
