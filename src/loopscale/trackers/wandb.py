"""Weights & Biases: an offline run in RUN/trackers/wandb, sent by `wandb sync` when the user says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopscale.trackers.protocol import Identity


class Biases:
    """A run of wandb; parts of one run share its id, so that `wandb sync` joins them."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row per step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write the rest."""
        self.run.finish(quiet=True)


def open_tracker(identity: Identity) -> Biases:
    """Open a run, offline unless the environment's WANDB_MODE says otherwise."""
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
    return Biases(run)


def place(run: Path) -> str:
    """Say where the points are, and what sends them."""
    folder = run / "trackers" / "wandb"
    return f"{folder}: wandb sync {folder}/offline-run-*"
