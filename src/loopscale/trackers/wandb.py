"""Weights & Biases: an offline run in RUN/trackers/wandb, sent by `wandb sync` when the user says so."""

from __future__ import annotations

import os
from typing import Any

from loopscale.trackers.protocol import Identity, Tracker


def open_tracker(identity: Identity) -> Tracker:
    """Open a run, offline unless the environment's WANDB_MODE says otherwise.

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
