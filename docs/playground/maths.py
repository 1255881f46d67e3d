"""What the playground computes, in Python: the same formulas as maths.js, held equal by a test.

A toy of the stream at initialisation: every branch writes a vector of RMS u; two visits of one layer have cosine c,
different layers are orthogonal. After n visits of L layers (pre-norm),

    RMS(h_n)^2 = 1 + (eps u)^2 L n (1 + (n - 1) c)

Without any norm each branch multiplies the stream, RMS(h_n)^2 = (1 + 2 eps u c + (eps u)^2)^(n L); a norm on the branch
sets u = 1; a norm on the stream sets RMS = 1. One step of an Adam-like optimiser, on all layers and seen by all visits,
moves the output by

    change = eps N L rate,   rate = the rule's factor on the hidden learning rate

relative to one loop of one layer at strength 1.
"""

from __future__ import annotations

import math

import loopscale as ls

BRANCH = 0.6  # u before any norm on the branch: about what a SwiGLU of random weights writes for an input of RMS 1
ALIGNED = {
    True: 0.92,
    False: 0.0,
}  # mean cosine over pairs of 16 visits: tied (record of prediction 1), distinct layers
NORMS = ("pre", "sandwich", "stream", "absent")


def eps(rule: str, loops: int, layers: int, strength: float) -> float:
    """Compute the residual scale, layers counted against one."""
    return ls.residual_scale(ls.Depth(loops, layers), strength, rule=rule)


def stream(rule: str, norm: str, tied: bool, loops: int, layers: int, strength: float) -> list[float]:
    """RMS of the stream at entry and after every visit; capped at 1e30, where a real network has overflowed."""
    scale = eps(rule, loops, layers, strength) * (1.0 if norm == "sandwich" else BRANCH)
    c = ALIGNED[tied]
    found = []
    for n in range(loops + 1):
        if norm == "stream":
            log = 0.0
        elif norm == "absent":
            log = n * layers * math.log(1 + 2 * scale * c + scale**2)
        else:
            log = math.log(1 + scale**2 * layers * n * (1 + max(n - 1, 0) * c))
        found.append(math.exp(min(log / 2, 69.0)))
    return found


def change(rule: str, loops: int, layers: int, strength: float) -> float:
    """How far one step at the same base rate moves the output, against one loop of one layer at strength 1."""
    rate = ls.RULES[rule].for_role(ls.Role.HIDDEN, ls.Depth(loops, layers)).lr.value
    return eps(rule, loops, layers, strength) * loops * layers * rate
