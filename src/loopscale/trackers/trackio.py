"""trackio: its local database, in the folder that trackio itself uses (TRACKIO_DIR)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from loopscale.trackers.protocol import Identity


class Database:
    """The current run of trackio."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row per step."""
        self.library.log(dict(values), step=step)

    def close(self) -> None:
        """Write the rest; trackio prints, and stdout is for results."""
        with redirect_stdout(sys.stderr):
            self.library.finish()


def open_tracker(identity: Identity) -> Database:
    """Open the run of this name, to which a continuation adds. Nothing is sent unless TRACKIO_SPACE_ID is set."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import trackio

    with redirect_stdout(sys.stderr):
        trackio.init(
            project="loopscale",
            name=identity.name,
            config=identity.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return Database(trackio)


def place(run: Path) -> str:
    """Say where the points are, and what shows them."""
    return "trackio's own database: trackio show --project loopscale"
