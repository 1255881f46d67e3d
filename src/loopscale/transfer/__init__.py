"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict."""

from loopscale.transfer.optimum import Optimum, fit_optimum
from loopscale.transfer.plan import Arm, Cell, StudyPlan, seeds_by_cost
from loopscale.transfer.presets import PRESETS, Preset, get_preset
from loopscale.transfer.result import failed, summarise
from loopscale.transfer.run import run_study
from loopscale.transfer.search import wanted
from loopscale.transfer.study import Study
from loopscale.transfer.verdict import fit_slope, judge, one_shot_regret

__all__ = [
    "PRESETS",
    "Arm",
    "Cell",
    "Optimum",
    "Preset",
    "Study",
    "StudyPlan",
    "failed",
    "fit_optimum",
    "fit_slope",
    "get_preset",
    "judge",
    "one_shot_regret",
    "run_study",
    "seeds_by_cost",
    "summarise",
    "wanted",
]
