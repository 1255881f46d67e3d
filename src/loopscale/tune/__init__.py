"""Tune once on a small proxy, carry the values to the target, verify in between."""

from loopscale.tune.plan import transfer_plan
from loopscale.tune.regret import Local, extrapolate, read_local
from loopscale.tune.run import read_plan, train_command, tune
from loopscale.tune.search import Budget
from loopscale.tune.settings import TUNABLE, Size, TuneSettings
from loopscale.tune.surface import Vertex, fit_surface
from loopscale.tune.verify import SHARE, Checks, check_user_code, share_of, verify
from loopscale.tune.words import nats, spoken

__all__ = [
    "SHARE",
    "TUNABLE",
    "Budget",
    "Checks",
    "Local",
    "Size",
    "TuneSettings",
    "Vertex",
    "check_user_code",
    "extrapolate",
    "fit_surface",
    "nats",
    "read_local",
    "read_plan",
    "share_of",
    "spoken",
    "train_command",
    "transfer_plan",
    "tune",
    "verify",
]
