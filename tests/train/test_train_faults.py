"""Faults: kills at random moments, a disk that is really full, a damaged shard, a scheduler's SIGTERM through torchrun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soak
from changed import changed

from loopscale.cli import main
from loopscale.data import Preparation, prepare_data
from loopscale.errors import UserError
from loopscale.train import TrainConfig, checkpoint, resume_run, train_run
from loopscale.train.training import prepare

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    assert soak.soak(soak.small(steps=60), 8, 1, tmp_path)["kills"] == 8


@pytest.mark.slow
def test_two_hundred_random_kills_lose_nothing(tmp_path: Path) -> None:
    assert soak.soak(soak.small(), 200, 2, tmp_path)["kills"] == 200


def lines(run: Path) -> list[Any]:
    return [(row["step"], row["loss"]) for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def test_a_really_full_disk_and_the_same_losses_after_it(
    tiny: TrainConfig, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(tiny, tmp_path / "whole")
    monkeypatch.setattr(checkpoint, "SLACK", 0)  # the disk is smaller than the slack that is asked for
    run, ballast = small_disk / "run", small_disk / "ballast"

    def fill(line: dict[str, Any], steps: int) -> None:
        if line["step"] == 6:
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(b"x" * 4096)

    with pytest.raises(
        UserError, match=r"^the disk is full while writing .*: free some space, then run the same"
    ) as stop:
        train_run(tiny, run, on_step=fill)
    assert "\n" not in str(stop.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000004"]
    with pytest.raises(UserError, match=r"^the disk of .* has .* free and the next checkpoints need"):
        resume_run(run)
    ballast.unlink()
    assert resume_run(run).status == "finished"
    assert lines(run) == lines(tmp_path / "whole")


def test_a_checkpoint_that_a_kill_left_half_removed_is_gone_after_the_next_start(
    tiny: TrainConfig, tmp_path: Path
) -> None:
    train_run(tiny, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    for name in ("step-000002", ".step-000012.0a1b2c3d"):
        (tmp_path / "run/checkpoints" / name).mkdir()
        (tmp_path / "run/checkpoints" / name / "model.safetensors").write_bytes(b"half")
    assert resume_run(tmp_path / "run").status == "finished"
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == kept


def test_too_little_room_is_said_before_training(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(changed(tiny, train={"keep": 1}))
    free = 2 * checkpoint.checkpoint_bytes(training)
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda place: usage)
    checkpoint.check_room(tmp_path / "run", training)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda place: usage._replace(free=free - 1))
    with pytest.raises(
        UserError, match=r"has 2\.\d MB free and the next checkpoints need 2\.\d MB: free some space, lower"
    ):
        train_run(changed(tiny, train={"keep": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_the_estimate_of_a_checkpoint_is_an_upper_bound(tiny: TrainConfig, tmp_path: Path, optimizer: str) -> None:
    config = changed(tiny, optim={"optimizer": optimizer}, train={"steps": 1})
    train_run(config, tmp_path / "run")
    files = (tmp_path / "run/checkpoints/step-000001").iterdir()
    size, estimate = sum(file.stat().st_size for file in files), checkpoint.checkpoint_bytes(prepare(config))
    assert size <= estimate <= 1.5 * size + checkpoint.SLACK


def test_a_damaged_shard_ends_training_with_a_sentence(text: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    prepare_data(str(text), tmp_path / "shards", Preparation(shard_tokens=10_000, validation_fraction=0.2))
    train = {"steps": 200, "precision": "fp32"}  # "auto" would read the first batch before the folder is made
    config = changed(tiny, data={"path": str(tmp_path / "shards"), "order": "epochs"}, train=train)
    shard = tmp_path / "shards/train-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00001\.safetensors is damaged \(checksum of its tokens"):
        train_run(config, tmp_path / "run")
    content[3000] ^= 1
    shard.write_bytes(content)
    # The shard is met before the first step has ended: the run had not begun, so its name is free again.
    assert not (tmp_path / "run").exists()
    train_run(config, tmp_path / "run")
    train_run(config, tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.parametrize("source", ["stream:{text}", "{text}"])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_continued_stream_is_the_same_at_every_token(
    text: Path, tiny: TrainConfig, tmp_path: Path, source: str, prefetch: int
) -> None:
    config = changed(tiny, data={"path": source.format(text=text), "prefetch": prefetch})
    train_run(config, tmp_path / "whole")

    def pull_the_plug(line: dict[str, Any], steps: int) -> None:
        if line["step"] == 10:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError):
        train_run(config, tmp_path / "cut", on_step=pull_the_plug)
    resume_run(tmp_path / "cut")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_the_same_command_again_continues(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(config_file), "--out", str(tmp_path / "run"), "--continue"]
    assert main(command) == 0 and main(command) == 0
    assert main([*command, "--set", "optim.lr=0.5"]) == 2
    assert "holds a run with optim.lr = 0.0078125, asked for is 0.5: name another" in capsys.readouterr().err
    assert main(["train", str(config_file), "--continue"]) == 2


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "loopscale",
    ]
    return subprocess.run([*command, *map(str, arguments)], env=ENV, text=True, capture_output=True, timeout=600)


def test_torchrun_trains_and_only_rank_0_speaks(config_file: Path, tmp_path: Path) -> None:
    done = torchrun("train", config_file, "--out", tmp_path / "run", "--set", "train.strategy=fsdp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished 12 steps") == 1 and done.stderr.count("step 12/12") == 1
    assert [step for step, _ in lines(tmp_path / "run")] == list(range(1, 13))


@pytest.mark.slow
def test_torchrun_reports_a_mistake_once_and_fails(config_file: Path, tmp_path: Path) -> None:
    done = torchrun("train", config_file, "--out", tmp_path / "run", "--set", "data.batch_size=3")
    assert done.returncode != 0 and done.stderr.count("loopscale: data.batch_size = 3 cannot be dealt out") == 1
    assert not (tmp_path / "run").exists()
