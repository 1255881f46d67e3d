"""The sizes a study comes in: a demo in minutes, a laptop's lunch break, one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopscale.errors import UserError, nearest
from loopscale.train import TrainConfig, make_config, parse_values

SEEDS = 3  # of a cell: fewer say next to nothing of noise


@dataclass(frozen=True)
class Preset:
    """Defaults of `loopscale transfer`: a base config and the axes of the study.

    `spacing`: as in `StudyPlan`; three rates an octave apart tell as much of a slope as five, for their noise is that of
    whole curves.
    """

    config: dict[str, Any]
    loops: tuple[int, ...]
    center_lr: float
    promise: str
    spacing: int = 1

    def base(self, sets: Sequence[str] = (), user_model: bool = False) -> TrainConfig:
        """Return the base config of every trial, with `a.b=c` overrides.

        Raises `UserError` for an unknown key or bad value.

        user_model: the model is the user's, so the house model's combinations (head_dim divides width) are not asked for,
        and its precision is measured; the presets are fp32 unless they say otherwise, so that their records stay.
        """
        if user_model:
            return parse_values(self.config, sets)
        train = {"precision": "fp32", **self.config["train"]}
        return make_config({**self.config, "train": train}, sets)


def _small(steps: int, layers: int, batch: int, width: int = 64, context: int = 64, **train: Any) -> dict[str, Any]:
    return {
        "model": {"width": width, "layers": layers, "loops": 1, "head_dim": 32, "base_layers": layers},
        "data": {"path": "stdlib", "context": context, "batch_size": batch},
        "optim": {
            "optimizer": "adamw",
            "lr": 2.0**-6,
            "weight_decay": 0.1,
            "clip": 1.0,
            "schedule": "linear",
            "warmup": 0.1,
        },
        "train": {"steps": steps, "eval_batches": 32, "seed": 0, "device": "cpu", **train},
    }


PRESETS = {
    "demo": Preset(_small(100, 1, 8), (1, 16), 2.0**-6, "about 3 minutes on 2 cores", 2),
    "laptop": Preset(_small(120, 2, 12), (1, 2, 4, 8, 16), 2.0**-6, "at most 40 minutes on 2 cores"),
    "gpu": Preset(
        _small(2000, 4, 64, width=512, context=512, device="cuda", precision="bf16"),
        (1, 2, 4, 8, 16),
        2.0**-9,
        "hours on one GPU; not yet measured",
    ),
}


def get_preset(name: str) -> Preset:
    """Return a preset by name. Raises `UserError` for an unknown one, with the nearest."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]
