"""What a test's own process does to itself; in a file of its own, so that a spawned process imports little."""

import os
import signal
from typing import Any


def at_step_7(line: dict[str, Any], steps: int) -> None:
    """Kill this process without notice after step 7 of a training."""
    if line["step"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
