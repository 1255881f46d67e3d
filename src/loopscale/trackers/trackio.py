"""trackio: its local database, in the folder that trackio itself uses (TRACKIO_DIR)."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout

from loopscale.trackers.protocol import Identity, Tracker


def open_tracker(identity: Identity) -> Tracker:
    """Open the run of this name, to which a continuation adds. Nothing is sent unless TRACKIO_SPACE_ID is set."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import trackio

    def finish() -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()

    with redirect_stdout(sys.stderr):  # trackio prints, and stdout is for results
        trackio.init(
            project="loopscale",
            name=identity.name,
            config=identity.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return Tracker(lambda step, values: trackio.log(dict(values), step=step), finish)
