"""TensorBoard: event files in RUN/trackers/tensorboard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopscale.trackers.protocol import Identity


class Board:
    """A `SummaryWriter` that is flushed at every step: a killed run has its points."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


def open_tracker(identity: Identity) -> Board:
    """Open a new event file beside those of earlier parts of the run; TensorBoard shows them as one."""
    from torch.utils.tensorboard import SummaryWriter

    folder = identity.folder / "tensorboard"
    fresh = not folder.exists()
    _wait_for_a_later_second(folder)
    writer: Any = SummaryWriter(folder)
    if fresh:
        writer.add_text("config", f"```json\n{json.dumps(identity.config, indent=1)}\n```")
    return Board(writer)


def _wait_for_a_later_second(folder: Path) -> None:
    """Wait, since event files sort by the second in their names and one of this second could come before its beginning.

    A stamp further ahead is of a clock that was wrong, and is not waited for.
    """
    stamps = [
        int(stamp) for file in folder.glob("events.out.tfevents.*") if (stamp := file.name.split(".")[3]).isdecimal()
    ]
    ours = [stamp for stamp in stamps if stamp <= time.time() + 1]
    while ours and max(ours) >= int(time.time()):
        time.sleep(0.05)


def place(run: Path) -> str:
    """Say where the points are, and what shows them."""
    folder = run / "trackers" / "tensorboard"
    return f"{folder}: tensorboard --logdir {folder}"
