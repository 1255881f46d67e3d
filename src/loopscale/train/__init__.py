"""Training: a config, the loop, the run folder, checkpoints, samples."""

from loopscale.train.config import TrainConfig
from loopscale.train.fit import Fit, fit
from loopscale.train.generate import generate
from loopscale.train.load import load_config, load_values, make_config, parse_config, parse_values
from loopscale.train.loop import Outcome, resume_run, train_run
from loopscale.train.own import OwnModel, default_loss, make_own, takes
from loopscale.train.own_agree import disagreements
from loopscale.train.own_fit import fit_own, own_optimizer
from loopscale.train.parallel import shard_looped
from loopscale.train.place import describe, fingerprint, load_place
from loopscale.train.provenance import provenance
from loopscale.train.run import Run, open_run
from loopscale.train.training import StepRecord
from loopscale.train.tuned import with_tuned
from loopscale.train.world import World, joined

__all__ = [
    "Fit",
    "Outcome",
    "OwnModel",
    "Run",
    "StepRecord",
    "TrainConfig",
    "World",
    "default_loss",
    "describe",
    "disagreements",
    "fingerprint",
    "fit",
    "fit_own",
    "generate",
    "joined",
    "load_config",
    "load_place",
    "load_values",
    "make_config",
    "make_own",
    "open_run",
    "own_optimizer",
    "parse_config",
    "parse_values",
    "provenance",
    "resume_run",
    "shard_looped",
    "takes",
    "train_run",
    "with_tuned",
]
