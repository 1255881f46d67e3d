"""Run the trials of a study: one driver per folder, workers on this machine's cores and GPUs, on Ray or on SLURM."""

from loopscale.records import content_hash
from loopscale.study.batches import Batched
from loopscale.study.executor import Executor, InThisProcess, Job, drive
from loopscale.study.fastest import Fastest
from loopscale.study.folder import Observer, Silent, changes, check_errors, driven, refuse
from loopscale.study.local import LocalProcesses
from loopscale.study.own import Own, objective_values
from loopscale.study.ray_tasks import RayTasks
from loopscale.study.slurm import SlurmArrays
from loopscale.study.stopping import thresholds
from loopscale.study.trial import run_trial

__all__ = [
    "Batched",
    "Executor",
    "Fastest",
    "InThisProcess",
    "Job",
    "LocalProcesses",
    "Observer",
    "Own",
    "RayTasks",
    "Silent",
    "SlurmArrays",
    "changes",
    "check_errors",
    "content_hash",
    "drive",
    "driven",
    "objective_values",
    "refuse",
    "run_trial",
    "thresholds",
]
