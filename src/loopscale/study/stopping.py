"""Early stopping of hopeless trials: thresholds that travel with the job, so that any executor can apply them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopscale.train import StepRecord

RUNGS = (0.3, 0.6)  # shares of the steps at which a trial is looked at
NEEDED = 5  # finished trials before anything is stopped
MARGIN = 0.05  # nats


def smoothed(curve: Sequence[Sequence[float | None]], step: int, window: int = 10) -> float | None:
    """Return the mean training loss over the last recorded points up to `step`; None before the first."""
    seen = [loss for at, loss in curve if at is not None and at <= step and loss is not None]
    return fmean(seen[-window:]) if seen else None


def thresholds(records: Sequence[dict[str, Any]], steps: int) -> list[list[float]]:
    """Return [[step, loss], ...]: a trial whose smoothed loss is above `loss` at `step` may stop.

    The threshold is the worst loss at that step of the better half of the finished trials, plus a margin: whoever ended
    in the better half would not have been stopped. Curves are thinned, so the window of the mean is in recorded points.
    """
    whole = sorted((r for r in records if r["loss"] is not None), key=lambda record: record["loss"])
    if len(whole) < NEEDED:
        return []
    better = whole[: max(2, (len(whole) + 1) // 2)]
    rows = []
    for share in RUNGS:
        step = max(1, round(share * steps))
        seen = [loss for loss in (smoothed(r["curve"], step, 4) for r in better) if loss is not None]
        if seen:
            rows.append([step, max(seen) + MARGIN])
    return rows


def stops(rows: Sequence[Sequence[float]]) -> Callable[[StepRecord], bool]:
    """Give what is shown each step's record and says whether to stop there."""
    recent: list[float] = []

    def stop(record: StepRecord) -> bool:
        recent.append(record.loss)
        del recent[:-10]
        return any(record.step == at and fmean(recent) > most for at, most in rows)

    return stop
