"""Tune once on a small proxy, carry the values to the target, verify in between."""

from loopscale.records import Size
from loopscale.tune.advice import about_looping, nats, spoken
from loopscale.tune.beside import SHARE
from loopscale.tune.plan import transfer_plan
from loopscale.tune.regret import Local, extrapolate, read_local
from loopscale.tune.run import kept_settings, read_plan, tune
from loopscale.tune.search import Budget
from loopscale.tune.settings import TUNABLE, TuneSettings
from loopscale.tune.surface import Vertex, fit_surface
from loopscale.tune.verify import Checks, share_of, verify

__all__ = [
    "SHARE",
    "TUNABLE",
    "Budget",
    "Checks",
    "Local",
    "Size",
    "TuneSettings",
    "Vertex",
    "about_looping",
    "extrapolate",
    "fit_surface",
    "kept_settings",
    "nats",
    "read_local",
    "read_plan",
    "share_of",
    "spoken",
    "transfer_plan",
    "tune",
    "verify",
]
