"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict."""

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
