"""Check free disk space for the checkpoints before training starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from loopscale.errors import UserError
from loopscale.planning.memory import MOMENTS
from loopscale.train import checkpoint
from loopscale.train.training import Training

SLACK = 2**20  # headers, state.json, metrics


def checkpoint_bytes(training: Training) -> int:
    """Count the bytes of one checkpoint: weights and moments."""
    weights = sum(p.numel() * p.element_size() for p in training.model.parameters())
    return weights * (1 + MOMENTS[training.config.optim.optimizer]) + SLACK


def check_room(folder: Path, training: Training) -> None:
    """Raise `UserError` when the disk of `folder` cannot take the checkpoints that are yet to be written.

    While one is written the last `keep` are still there: keep + 1 at a time, less those there are.
    """
    settings = training.config.train
    left = 1 if settings.checkpoint_every == 0 else -(-settings.steps // settings.checkpoint_every)
    most = min(settings.keep + 1, left)
    needed = max(1, most - len(checkpoint.listed(folder / "checkpoints"))) * checkpoint_bytes(training)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {_size(free)} free and the next checkpoints need {_size(needed)}: "
            "free some space, lower train.keep, or name another place with --out"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
