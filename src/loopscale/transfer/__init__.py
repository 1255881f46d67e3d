"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict.

Public names load on first use, so that whoever reads a study's numbers needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopscale.lazy import on_first_use

if TYPE_CHECKING:
    from loopscale.records import Estimate
    from loopscale.transfer.estimate import over_seeds, paired, student95
    from loopscale.transfer.law import stream_growth
    from loopscale.transfer.optimum import Optimum, best_rate, complete, fit_optimum
    from loopscale.transfer.pays import Beside, does_looping_pay
    from loopscale.transfer.plan import Arm, Cell, StudyPlan, seeds_by_cost
    from loopscale.transfer.presets import PRESETS, Preset, get_preset
    from loopscale.transfer.result import Curves, failed, summarise
    from loopscale.transfer.run import run_study
    from loopscale.transfer.search import wanted
    from loopscale.transfer.study import Study
    from loopscale.transfer.verdict import fit_slope, judge, one_shot_regret

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
        "plan": "Arm Cell StudyPlan seeds_by_cost",
        "pays": "Beside does_looping_pay",
        "result": "Curves failed summarise",
        "estimate": "Estimate over_seeds paired student95",
        "optimum": "Optimum best_rate complete fit_optimum",
        "presets": "PRESETS Preset get_preset",
        "study": "Study",
        "verdict": "fit_slope judge one_shot_regret",
        "run": "run_study",
        "law": "stream_growth",
        "search": "wanted",
    },
)
