"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict."""

from loopscale.transfer.executor import Executor, LocalProcesses, lanes
from loopscale.transfer.fastest import Fastest
from loopscale.transfer.optimum import Optimum, fit_optimum
from loopscale.transfer.own import Own, objective_values
from loopscale.transfer.plan import Arm, Cell, StudyPlan, content_hash, seeds_by_cost
from loopscale.transfer.presets import PRESETS, Preset, get_preset
from loopscale.transfer.ray_tasks import RayTasks
from loopscale.transfer.result import failed, summarise
from loopscale.transfer.run import run_study
from loopscale.transfer.search import wanted
from loopscale.transfer.slurm import SlurmArrays
from loopscale.transfer.stacks import Stacks
from loopscale.transfer.stopping import thresholds
from loopscale.transfer.study import Study
from loopscale.transfer.verdict import fit_slope, judge, one_shot_regret

__all__ = [
    "PRESETS",
    "Arm",
    "Cell",
    "Executor",
    "Fastest",
    "LocalProcesses",
    "Optimum",
    "Own",
    "Preset",
    "RayTasks",
    "SlurmArrays",
    "Stacks",
    "Study",
    "StudyPlan",
    "content_hash",
    "failed",
    "fit_optimum",
    "fit_slope",
    "get_preset",
    "judge",
    "lanes",
    "objective_values",
    "one_shot_regret",
    "run_study",
    "seeds_by_cost",
    "summarise",
    "thresholds",
    "wanted",
]
