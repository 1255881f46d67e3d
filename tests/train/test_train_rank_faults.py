"""Two ranks, and something happens to one of them: all do the same thing, in one sentence, within a bounded time."""

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
import ranked
from changed import changed
from ranks import begin, finish, on_ranks

from loopscale.data import Preparation, prepare_data
from loopscale.train import TrainConfig, load_config, open_run, resume_run, train_run

STRATEGIES = ["ddp", "fsdp"]
LONG = 600  # seconds that a machine busy with other things may take


@pytest.fixture(scope="module")
def values(tiny: TrainConfig) -> dict[str, Any]:
    return changed(tiny, train={"steps": 20, "checkpoint_every": 5, "eval_every": 0, "stream_every": 0}).to_dict()


@pytest.fixture(scope="module")
def whole(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run = tmp_path_factory.mktemp("whole") / "run"
    train_run(ranked.config_of(values), run)
    return curve(run)


def with_(values: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {**values, "train": {**values["train"], **train}}


def curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_nan_on_one_rank_stops_all_and_touches_no_weight(
    values: dict[str, Any], whole: list[float], tmp_path: Path, strategy: str, victim: int
) -> None:
    run, config = tmp_path / "run", with_(values, strategy=strategy)
    first, second = on_ranks(2, ranked.poisoned_run, config, str(run), 13, victim)
    assert first == second
    assert (first["status"], first["step"], first["untouched"]) == ("nonfinite", 12, True)
    assert first["sentence"].startswith(
        "the loss is not finite at step 13: the first non-finite value came out of 'embedding' at visit 1; try a lower"
    )
    assert checkpoints(run) == ["step-000005", "step-000010"]
    on_ranks(2, ranked.run, config, str(run))
    assert curve(run) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_under_one_rank_stops_all_and_keeps_the_checkpoint_before(
    values: dict[str, Any], whole: list[float], tmp_path: Path, victim: int
) -> None:
    run, config = tmp_path / "run", with_(values, strategy="fsdp")
    answers = finish(begin(2, ranked.run_on_a_full_disk, config, str(run), 15, victim))
    assert [kind for kind, _ in answers] == ["error", "error"], answers
    sentence = f"the disk is full while writing {run}/checkpoints/"
    assert answers[0][1].startswith(f"UserError: {sentence}") and "\n" not in answers[0][1]
    assert answers[1][1].startswith(f"AgreedError: {sentence}")
    assert checkpoints(run) == ["step-000005", "step-000010"]  # nothing half written, nothing aside
    assert open_run(run).newest_whole(print) == run / "checkpoints/step-000010"
    on_ranks(2, ranked.run, config, str(run))
    assert curve(run) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_disk_that_fills_up_under_two_ranks(
    values: dict[str, Any], whole: list[float], small_disk: Path, strategy: str
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    config = with_(values, strategy=strategy)
    answers = finish(begin(2, ranked.run_that_fills_the_disk, config, str(run), str(ballast), 12))
    assert answers[0][0] == "error" and answers[0][1].startswith(f"UserError: the disk is full while writing {run}/")
    assert answers[1][1].startswith(f"AgreedError: the disk is full while writing {run}/")
    assert checkpoints(run) == ["step-000005", "step-000010"]
    said = finish(begin(2, ranked.run_that_fills_the_disk, config, str(run), str(ballast), 0))
    assert said[0][1].startswith("UserError: the disk of ") and "the next checkpoints need" in said[0][1]
    ballast.unlink()
    on_ranks(2, ranked.run_that_fills_the_disk, config, str(run), str(ballast), 0)
    assert curve(run) == pytest.approx(whole, abs=1e-5)


def test_a_signal_to_the_second_rank_stops_both_after_the_same_step(values: dict[str, Any], tmp_path: Path) -> None:
    answers = on_ranks(2, ranked.run, values, str(tmp_path / "run"), 7, 1, signal.SIGTERM)
    assert [(answer["status"], answer["step"], answer["code"]) for answer in answers] == [("stopped", 7, 143)] * 2
    assert checkpoints(tmp_path / "run") == ["step-000005", "step-000007"]


def test_a_damaged_shard_that_only_the_second_rank_reads(values: dict[str, Any], text: Path, tmp_path: Path) -> None:
    """Its sentence is told to all before the step, not by vanishing."""
    shards, run = tmp_path / "shards", tmp_path / "run"
    prepare_data(str(text), shards, Preparation(shard_tokens=10_000, validation_fraction=0.2))
    data = {**values["data"], "path": str(shards), "order": "epochs"}
    config = {**values, "data": data, "train": {**values["train"], "steps": 40}}
    shard = shards / "train-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    for prefetch in (0, 2):
        config["data"]["prefetch"] = prefetch
        answers = finish(begin(2, ranked.run, config, str(run)))
        said = sorted(text for _, text in answers)
        assert [kind for kind, _ in answers] == ["error", "error"]
        assert "train-00001.safetensors is damaged (checksum of its tokens" in said[0]
        assert said[0].startswith("AgreedError: ") and said[1].startswith("UserError: ") and "lost" not in said[1]
    content[3000] ^= 1
    shard.write_bytes(content)
    on_ranks(2, ranked.run, config, str(run))
    train_run(ranked.config_of(config), tmp_path / "whole")
    assert curve(run) == pytest.approx(curve(tmp_path / "whole"), abs=1e-5)


def torchrun(*arguments: object) -> subprocess.Popen[str]:
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, text=True, **pipes)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + LONG
    while process.poll() is None and time.monotonic() < limit:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture
def file(values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(ranked.config_of(with_(values, steps=1500, checkpoint_every=100)).to_toml())
    return path


@pytest.mark.slow
def test_a_scheduler_stops_torchrun_and_starts_it_again(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun("train", file, "--out", run, "--continue")
    wait_for_step(run, 150, process)
    process.terminate()
    _, said = process.communicate(timeout=LONG)
    done = len(curve(run))
    assert process.returncode != 0 and said.count(f"loopscale: stopped by SIGTERM after step {done} of 1500") == 1, said
    assert f"step-{done:06d}" in checkpoints(run)
    again = torchrun("train", file, "--out", run, "--continue")
    _, said = again.communicate(timeout=LONG)
    assert again.returncode == 0, said
    train_run(load_config(file), tmp_path / "whole")
    assert curve(run) == pytest.approx(curve(tmp_path / "whole"), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_ends_when_a_rank_is_killed(file: Path, tmp_path: Path, victim: int) -> None:
    run = tmp_path / "run"
    process = torchrun("train", file, "--out", run)
    wait_for_step(run, 150, process)
    os.kill(sorted(children(process))[victim], signal.SIGKILL)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode != 0
    fix = f"continue from the last checkpoint with torchrun ... -m loopscale train --resume {run}"
    assert said.count(f"loopscale: a rank was lost: {fix}") == 1, said
    assert "loopscale/train" not in said  # no traceback of ours; torchrun shows its own
    assert checkpoints(run)[-1] == "step-000100"
    assert resume_run(run).status == "finished"
