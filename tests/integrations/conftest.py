"""A small trained run, with bytes and with BPE."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopscale.train import make_config, train_run

WORDS = "loop visit stream branch layer rate norm scale ünïcode Ā λ 圈 🌀".split()


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(20):
        body = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(300))
        (folder / f"{number:02d}.txt").write_text(body + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=["bytes", "bpe"])
def run(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"path": str(texts), "context": 32, "batch_size": 4, "validation_fraction": 0.2, "tokenizer": request.param}
    if request.param == "bpe":
        data["vocab_size"] = 300
    config = make_config(
        {
            "model": {"width": 32, "head_dim": 16, "layers": 2, "loops": 3, "tied_readout": request.param == "bpe"},
            "data": data,
            "train": {"steps": 8, "checkpoint_every": 4, "eval_every": 4, "eval_batches": 2, "device": "cpu"},
        }
    )
    path = tmp_path_factory.mktemp("runs") / request.param
    assert train_run(config, path).exit_code == 0
    return path
