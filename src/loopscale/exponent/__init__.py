"""Measure how fast the best eps and the best hidden rate fall with N, and what each rule would lose when carried."""

from loopscale.exponent.plan import CARRIED, Axis, Cell, ExponentPlan, powers
from loopscale.exponent.result import at_target, decide, decide_rate, powers_of, summarise
from loopscale.exponent.run import run_exponent
from loopscale.exponent.study import BEST, ExponentStudy, wanted
from loopscale.exponent.surface import Surface, fit_surface

__all__ = [
    "BEST",
    "CARRIED",
    "Axis",
    "Cell",
    "ExponentPlan",
    "ExponentStudy",
    "Surface",
    "at_target",
    "decide",
    "decide_rate",
    "fit_surface",
    "powers",
    "powers_of",
    "run_exponent",
    "summarise",
    "wanted",
]
