"""Objectives whose optimum is known: the strength and rate are best at 0.7 and 2^-6.4 of what reaches the network."""

import math
import time
from pathlib import Path


def objective(values):
    """Stands still over loops, layers and width when the rule is applied: what the rule does is divided out."""
    moved = values["residual_scale"] * values["loops"] * (values["layers"] / (values["base_layers"] or 1)) ** 0.5
    rate, strength = math.log2(values["lr"]) + 6.4, math.log2(moved / 0.7)
    noise = 0.002 * math.sin(977 * values["seed"] + 13 * rate + 7 * strength)
    return 2 + 0.06 * rate**2 + 0.04 * strength**2 + 0.02 * rate * strength + 0.01 * values["seed"] + noise


def drifting(values):
    """The best rate falls by half an octave with each doubling of the loops: no rule of 1/N helps."""
    rate = math.log2(values["lr"]) + 6.4 + 0.5 * math.log2(values["loops"])
    return 2 + 0.06 * rate**2 + 0.04 * math.log2(values["strength"] / 0.7) ** 2 + 0.01 * values["seed"]


def fragile(values):
    """Works at one loop, diverges at four."""
    return float("nan") if values["loops"] > 2 else drifting(values)


def sometimes(values):
    if values["lr"] < 2**-7:
        raise RuntimeError("out of luck")
    return drifting(values)


def never(values):
    raise OSError("no disk")


def leaves(values):
    raise SystemExit(3)


def slow(values):
    """Takes a while, so that there is something to interrupt; waits while a file `hold` lies where it runs."""
    time.sleep(0.15)
    while Path("hold").exists():
        time.sleep(0.05)
    return objective(values)
