"""Real processes: killed, told to stop, and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from changed import changed

from loopscale.cli import main
from loopscale.train import TrainConfig, train_run

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def loopscale(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loopscale", *map(str, arguments)]
    return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def losses(run: Path) -> list[Any]:
    return [(line["step"], line["loss"]) for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:  # as long as it takes: a machine may be busy
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


@pytest.fixture(scope="module")
def long(tiny: TrainConfig) -> TrainConfig:
    return changed(tiny, train={"steps": 400, "checkpoint_every": 25, "eval_every": 0})


@pytest.fixture(scope="module")
def whole(long: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train_run(long, run)
    return run


@pytest.fixture
def file(long: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(long.to_toml())
    return path


def test_kill_nine_and_resume_give_the_same_losses(
    file: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = loopscale("train", file, "--out", run)
    wait_for_step(run, 60, process)
    process.kill()
    process.communicate()
    assert len(losses(run)) < 400
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    assert losses(run) == losses(whole)
    name = "checkpoints/step-000400/model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_ends_with_a_checkpoint_and_a_sentence(
    file: Path, tmp_path: Path, number: int, code: int, name: str
) -> None:
    run = tmp_path / "run"
    process = loopscale("train", file, "--out", run)
    wait_for_step(run, 30, process)
    process.send_signal(number)
    _, err = process.communicate()
    done = len(losses(run))
    assert process.returncode == code, err
    assert err.splitlines()[-1] == (
        f"loopscale: stopped by {name} after step {done} of 400: continue with loopscale train --resume {run}"
    )
    assert (run / f"checkpoints/step-{done:06d}").is_dir()
