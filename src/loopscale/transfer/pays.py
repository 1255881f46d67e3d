"""Say whether looping pays: the target's loops against one loop, at equal steps and at equal compute, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loopscale.records import Estimate, Pays
from loopscale.transfer.estimate import over_seeds


@dataclass(frozen=True)
class Beside:
    """Losses by seed of `loops` loops, and of one loop beside them; inf where training diverged.

    All three start from the same seeds in the same order. `long` is one loop trained for `long_steps`, as long as the
    target's compute lasts (`loopscale.train.equal_steps`); empty where it was not trained. `each`: every network at its
    own best rate, else as the plan of a tuning sets it. `counted`: in what the compute is.
    """

    loops: int
    steps: int
    target: Sequence[float]
    short: Sequence[float]
    long: Sequence[float] = ()
    long_steps: int = 0
    at_lower_end: bool = False
    each: str = "each at its own best rate"
    counted: str = "FLOPs"


def does_looping_pay(losses: Beside) -> Pays:
    """Compare the target with one loop and say it in words; differences are the target's loss minus that of one loop."""
    at_steps = _minus(losses.target, losses.short)
    at_compute = _minus(losses.target, losses.long) if losses.long else None
    told = [f"at equal steps ({losses.steps:,}) {_told(losses.loops, losses.target, losses.short, at_steps)}"]
    if losses.long:
        longer = f"at equal compute (one loop for {losses.long_steps:,} steps, as many {losses.counted})"
        told.append(f"{longer} {_told(losses.loops, losses.target, losses.long, at_compute)}")
    else:
        told.append("equal compute was not measured")
    end = ""
    if losses.at_lower_end:
        end = (
            " The best strength lies at the lower end of what was tried, where a visit changes next to nothing: "
            "the network does best with its loops nearly switched off."
        )
    return Pays(
        loops=losses.loops,
        steps=losses.steps,
        long_steps=losses.long_steps,
        sentence=f"{_verdict(losses, at_steps, at_compute)}: {'; '.join(told)}; {losses.each}.{end}",
        equal_steps=None if at_steps is None else at_steps.value,
        equal_steps_interval=None if at_steps is None else at_steps.interval,
        equal_compute=None if at_compute is None else at_compute.value,
        equal_compute_interval=None if at_compute is None else at_compute.interval,
        at_lower_end=losses.at_lower_end,
    )


def _minus(target: Sequence[float], one: Sequence[float]) -> Estimate | None:
    """Estimate the difference over the seeds that both have; None where a training diverged."""
    pairs = list(zip(target, one, strict=False))
    return over_seeds([a - b for a, b in pairs]) if pairs and all(map(math.isfinite, (*target, *one))) else None


def _told(loops: int, target: Sequence[float], one: Sequence[float], difference: Estimate | None) -> str:
    if difference is None:
        if all(map(math.isfinite, target)):
            return f"{loops} loops train and one diverges"
        return f"{loops} loops diverge"
    if difference.interval is None:
        return f"{loops} loops are {_better(difference)} than one (one seed shows no noise)"
    ends = f"95 % interval {difference.interval[0]:+.3f} to {difference.interval[1]:+.3f}"
    if not difference.moves:
        return f"{loops} loops and one are not told apart ({difference.value:+.3f} nats, {ends})"
    return f"{loops} loops are {_better(difference)} than one ({ends})"


def _better(difference: Estimate) -> str:
    return f"{abs(difference.value):.3f} nats {'better' if difference.value < 0 else 'worse'}"


def _verdict(losses: Beside, at_steps: Estimate | None, at_compute: Estimate | None) -> str:
    """Say what the two differences mean together; what one seed says, or an interval that holds 0, decides nothing."""
    steps, compute = (_sign(at_steps, losses.short), _sign(at_compute, losses.long))
    if not all(map(math.isfinite, losses.target)):
        return "Looping does not pay here"
    if steps > 0:
        return "At this length looping does not pay"
    if compute < 0:
        return "At this length looping pays, for its compute too"
    if steps < 0 and compute > 0:
        return "At this length looping pays for its weights, not for its compute"
    if steps < 0:
        return "At this length looping pays for its weights; whether for its compute is open"
    if compute > 0:
        return "At this length looping does not pay for its compute; whether for its weights is open"
    return "Whether looping pays at this length is open"


def _sign(difference: Estimate | None, one: Sequence[float]) -> int:
    """Return -1 where the target is better for certain, 1 where it is worse for certain, else 0."""
    if difference is None:
        return -1 if one and not all(map(math.isfinite, one)) else 0
    return (1 if difference.value > 0 else -1) if difference.moves else 0
