"""The trackers by name: TensorBoard, trackio, Weights & Biases. Each is imported when a run is sent to it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopscale.trackers.protocol import Identity, Tracker


def tensorboard(identity: Identity) -> Tracker:
    """Open a new event file in RUN/trackers/tensorboard, beside those of earlier parts: TensorBoard shows them as one."""
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
    """Wait: event files sort by the second in their names. A stamp further ahead is of a wrong clock, not waited for."""
    stamps = [
        int(stamp) for file in folder.glob("events.out.tfevents.*") if (stamp := file.name.split(".")[3]).isdecimal()
    ]
    ours = [stamp for stamp in stamps if stamp <= time.time() + 1]
    while ours and max(ours) >= int(time.time()):
        time.sleep(0.05)


def trackio(identity: Identity) -> Tracker:
    """Open the run of this name in trackio's own database (TRACKIO_DIR), to which a continuation adds.

    Nothing is sent unless TRACKIO_SPACE_ID is set.
    """
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


def wandb(identity: Identity) -> Tracker:
    """Open a run in RUN/trackers/wandb, offline unless WANDB_MODE says otherwise; `wandb sync` sends it.

    Parts of one run share its id, so that `wandb sync` joins them.
    """
    import wandb

    identity.folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
    )
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    run = wandb.init(
        project="loopscale",
        name=identity.name,
        id=identity.id,
        resume="allow" if mode == "online" else None,
        dir=str(identity.folder),
        mode=mode,
        config=identity.config,
        settings=settings,
    )
    return Tracker(lambda step, values: run.log(dict(values), step=step), lambda: run.finish(quiet=True))


@dataclass(frozen=True)
class Kind:
    """Needs `module` (of the extra `track`); `place` says where the points of a {run} are, and what shows or sends them."""

    module: str
    open: Callable[[Identity], Tracker]
    place: str


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind(
        "tensorboard", tensorboard, "{run}/trackers/tensorboard: tensorboard --logdir {run}/trackers/tensorboard"
    ),
    "trackio": Kind("trackio", trackio, "trackio's own database: trackio show --project loopscale"),
    "wandb": Kind("wandb", wandb, "{run}/trackers/wandb: wandb sync {run}/trackers/wandb/offline-run-*"),
}
