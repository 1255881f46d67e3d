"""Run the trials of a study: one job at a time, on this machine's cores, on Ray or on SLURM."""

from loopscale.study.executor import Executor, Job, LocalProcesses, lanes
from loopscale.study.fastest import Fastest
from loopscale.study.keys import content_hash
from loopscale.study.own import Own, objective_values
from loopscale.study.ray_tasks import RayTasks
from loopscale.study.slurm import SlurmArrays
from loopscale.study.stacks import Stacks
from loopscale.study.stopping import thresholds
from loopscale.study.trial import run_trial

__all__ = [
    "Executor",
    "Fastest",
    "Job",
    "LocalProcesses",
    "Own",
    "RayTasks",
    "SlurmArrays",
    "Stacks",
    "content_hash",
    "lanes",
    "objective_values",
    "run_trial",
    "thresholds",
]
