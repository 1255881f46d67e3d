"""Does the answer settle when the loop runs on, to twice and four times its number of visits?"""

from __future__ import annotations

from typing import Any

from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.looprange import output_of
from loopscale.diagnosis.setting import Setting, at_each

# A second doubling that moves the answer by less than this share of the first has settled; by more than the other, drifts.
SETTLES, DRIFTS = 0.5, 0.75
# An answer that moves by less than this share of itself has settled, however the doublings compare.
STILL = 0.01


def settling(setting: Setting, knob: Knob, own: int) -> dict[str, Any] | None:
    """Run on to 2N and 4N: give the answer's change by each doubling and whether it settles, is marginal, or drifts.

    None where the model gives no answer of one shape at all three. The weights stay as they are: at random weights this
    says how the map behaves, of a trained model whether more loops at test time are safe.
    """
    counts = [own, 2 * own, 4 * own]
    found = {n: output_of(there) for n, there in at_each(setting, knob, counts)}
    first, second, third = (found.get(n) for n in counts)
    if first is None or second is None or third is None or not first.shape == second.shape == third.shape:
        return None
    changes = [rms(b - a) / max(rms(a), 1e-30) for a, b in ((first, second), (second, third))]
    ratio = changes[1] / max(changes[0], 1e-30)
    still = changes[1] < STILL or ratio < SETTLES
    return {
        "change": {str(n): change for n, change in zip(counts[1:], changes, strict=True)},
        "law": "settles" if still else "drifts" if ratio > DRIFTS else "marginal",
    }
