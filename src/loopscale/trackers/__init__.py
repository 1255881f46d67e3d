"""Trackers: the lines of a run's metrics.jsonl shown in TensorBoard, W&B or trackio, live or afterwards, offline."""

from loopscale.trackers.follow import Tracked, check_trackers, following, track_run
from loopscale.trackers.kinds import TRACKERS, Kind
from loopscale.trackers.protocol import Identity, Tracker

__all__ = ["TRACKERS", "Identity", "Kind", "Tracked", "Tracker", "check_trackers", "following", "track_run"]
