"""TensorBoard: event files in RUN/trackers/tensorboard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopscale.trackers.protocol import Identity, Tracker


def open_tracker(identity: Identity) -> Tracker:
    """Open a new event file beside those of earlier parts of the run; TensorBoard shows them as one."""
    from torch.utils.tensorboard import SummaryWriter

    folder = identity.folder / "tensorboard"
    fresh = not folder.exists()
    _wait_for_a_later_second(folder)
    writer: Any = SummaryWriter(folder)
    if fresh:
        writer.add_text("config", f"```json\n{json.dumps(identity.config, indent=1)}\n```")

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a killed run has its points

    return Tracker(log, writer.close)


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
