"""Training: a config, the loop, the run folder, checkpoints, samples."""

from loopscale.train.agreement import disagreements
from loopscale.train.config import TrainConfig
from loopscale.train.fit import Fit, fit
from loopscale.train.generate import generate
from loopscale.train.load import load_config, make_config, parse_values, read_toml, with_tuned
from loopscale.train.loop import Outcome, resume_run, train_run
from loopscale.train.needs import equal_steps, trial_flops
from loopscale.train.parallel import shard_looped
from loopscale.train.place import fingerprint, load_place
from loopscale.train.profile import Profile
from loopscale.train.provenance import provenance
from loopscale.train.run import Run, open_run
from loopscale.train.task import StepRecord, Task
from loopscale.train.user import UserModel, default_loss, takes, user_model
from loopscale.train.world import World, joined

__all__ = [
    "Fit",
    "Outcome",
    "Profile",
    "Run",
    "StepRecord",
    "Task",
    "TrainConfig",
    "UserModel",
    "World",
    "default_loss",
    "disagreements",
    "equal_steps",
    "fingerprint",
    "fit",
    "generate",
    "joined",
    "load_config",
    "load_place",
    "make_config",
    "open_run",
    "parse_values",
    "provenance",
    "read_toml",
    "resume_run",
    "shard_looped",
    "takes",
    "train_run",
    "trial_flops",
    "user_model",
    "with_tuned",
]
