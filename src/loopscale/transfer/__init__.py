"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict.

Public names load on first use, so that whoever reads a study's numbers needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopscale.transfer.estimate import Estimate, over_seeds, paired, student95
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

_HOMES = {
    "Arm": "plan",
    "Beside": "pays",
    "Cell": "plan",
    "Curves": "result",
    "Estimate": "estimate",
    "Optimum": "optimum",
    "PRESETS": "presets",
    "Preset": "presets",
    "Study": "study",
    "StudyPlan": "plan",
    "best_rate": "optimum",
    "complete": "optimum",
    "does_looping_pay": "pays",
    "failed": "result",
    "fit_optimum": "optimum",
    "fit_slope": "verdict",
    "get_preset": "presets",
    "judge": "verdict",
    "one_shot_regret": "verdict",
    "over_seeds": "estimate",
    "paired": "estimate",
    "run_study": "run",
    "seeds_by_cost": "plan",
    "stream_growth": "law",
    "student95": "estimate",
    "summarise": "result",
    "wanted": "search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
