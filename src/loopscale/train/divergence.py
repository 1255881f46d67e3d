"""When is a training lost? One definition, shared by all trials of a study."""

from __future__ import annotations

from loopscale.train.task import StepRecord

EXPLODED = 3.0  # a loss this many times the first one ...
PATIENCE = 50  # ... for this many steps in a row does not come back
WORSE = 1.0  # nats above the first loss at the end: worse than no training
SMOOTHING = 10  # steps in the mean that is compared


class Divergence:
    """Watches the losses of one training; `at` is the step (from 1) where it was lost, or None.

    Lost means: a loss or gradient that is not finite; a loss above 3 times the first for 50 steps in a row; or, at the
    end, a mean over the last 10 steps that is more than 1 nat above the first loss.
    """

    def __init__(self) -> None:
        self.at: int | None = None
        self._first: float | None = None
        self._high = 0
        self._recent: list[float] = []
        self._last = 0

    def observe(self, record: StepRecord) -> bool:
        """Take in one step; True when the training is lost and may end here."""
        self._last = record.step
        if not record.finite:
            self.at = record.step
            return True
        if self._first is None:
            self._first = record.loss
        self._recent = [*self._recent[1 - SMOOTHING :], record.loss]
        self._high = self._high + 1 if record.loss > EXPLODED * self._first else 0
        if self._high >= PATIENCE:
            self.at = record.step - PATIENCE + 1
        return self.at is not None

    @property
    def smoothed(self) -> float | None:
        """Mean loss of the last steps; None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def verdict(self) -> int | None:
        """Give the step where the finished training was lost, or None when it was not."""
        smoothed = self.smoothed
        if self.at is None and smoothed is not None and self._first is not None and smoothed > self._first + WORSE:
            self.at = self._last
        return self.at
