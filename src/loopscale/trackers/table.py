"""The trackers by name; a new one joins by adding a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopscale.trackers import tensorboard, trackio, wandb
from loopscale.trackers.protocol import Identity, Tracker


@dataclass(frozen=True)
class Kind:
    """Needs `module` (of the extra `track`); `place` says where the points are and what shows them."""

    module: str
    open: Callable[[Identity], Tracker]
    place: Callable[[Path], str]


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind("tensorboard", tensorboard.open_tracker, tensorboard.place),
    "trackio": Kind("trackio", trackio.open_tracker, trackio.place),
    "wandb": Kind("wandb", wandb.open_tracker, wandb.place),
}
