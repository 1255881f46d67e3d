"""A small real text and a small config: everything here trains in about a second."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loopscale.train import TrainConfig, make_config


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(0)
    words = ["loop", "visit", "stream", "branch", "layer", "rate", "norm", "scale"]
    for number in range(20):  # several documents, so that some are left for validation
        body = " ".join(generator.choice(words) for _ in range(400))
        (folder / f"{number:02d}.txt").write_text(body + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(text: Path) -> TrainConfig:
    return make_config(
        {
            "model": {"width": 16, "head_dim": 8, "layers": 1, "loops": 2},
            "data": {"path": str(text), "context": 16, "batch_size": 4, "validation_fraction": 0.2},
            "train": {
                "steps": 12,
                "checkpoint_every": 4,
                "eval_every": 6,
                "eval_batches": 2,
                "stream_every": 5,
                "device": "cpu",
            },
        }
    )


@pytest.fixture
def config_file(tiny: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny.to_toml(), encoding="utf-8")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A real file system of 1 MB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
