"""Run the trials of a study: one driver per folder, workers on this machine's cores and GPUs, on Ray or on SLURM."""

from loopscale.records import content_hash
from loopscale.study.batches import Batched
from loopscale.study.design import Design, with_precision
from loopscale.study.executor import Executor, InThisProcess, Job, drive
from loopscale.study.fastest import Fastest
from loopscale.study.folder import (
    Observer,
    Silent,
    check_named,
    command_of,
    driven,
    overrides,
    train_command,
)
from loopscale.study.local import LocalProcesses
from loopscale.study.ray_tasks import RayTasks
from loopscale.study.run import Page, StudyFolder, holding, run_trials
from loopscale.study.slurm import SlurmArrays
from loopscale.study.trial import MOST_SEEDS, job_of, run_trial, thresholds, trial_key, trial_seconds
from loopscale.study.user_code import UserCode, objective_values

__all__ = [
    "MOST_SEEDS",
    "Batched",
    "Design",
    "Executor",
    "Fastest",
    "InThisProcess",
    "Job",
    "LocalProcesses",
    "Observer",
    "Page",
    "RayTasks",
    "Silent",
    "SlurmArrays",
    "StudyFolder",
    "UserCode",
    "check_named",
    "command_of",
    "content_hash",
    "drive",
    "driven",
    "holding",
    "job_of",
    "objective_values",
    "overrides",
    "run_trial",
    "run_trials",
    "thresholds",
    "train_command",
    "trial_key",
    "trial_seconds",
    "with_precision",
]
