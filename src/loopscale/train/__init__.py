"""Training: a config, the loop, the run folder, checkpoints, samples."""

from loopscale.train.config import TrainConfig
from loopscale.train.fit import Fit, fit
from loopscale.train.generate import generate
from loopscale.train.load import load_config, make_config, parse_config
from loopscale.train.loop import Outcome, resume_run, train_run
from loopscale.train.provenance import provenance
from loopscale.train.run import Run, open_run
from loopscale.train.training import StepRecord

__all__ = [
    "Fit",
    "Outcome",
    "Run",
    "StepRecord",
    "TrainConfig",
    "fit",
    "generate",
    "load_config",
    "make_config",
    "open_run",
    "parse_config",
    "provenance",
    "resume_run",
    "train_run",
]
