"""A tracker shows what metrics.jsonl says, each step once: live, resumed, killed, or sent afterwards."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import killed
import pytest

from loopscale import UserError, errors
from loopscale.cli import main
from loopscale.trackers import TRACKERS, Kind, check_trackers, following, track_run
from loopscale.trackers.protocol import flat
from loopscale.train import TrainConfig, make_config, resume_run, train_run

EVENTS = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("the loop visits the layer and the stream flows on. " * 60)
    return make_config(
        {
            "model": {"width": 16, "head_dim": 8, "loops": 2},
            "data": {"path": str(text), "context": 16, "batch_size": 4, "validation_fraction": 0.3},
            "train": {"steps": 12, "checkpoint_every": 4, "eval_every": 6, "eval_batches": 1, "stream_every": 5},
        }
    )


def tracked(config: TrainConfig, *names: str) -> TrainConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"trackers": names})})


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All points of all event files, duplicates included."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((run / "trackers" / "tensorboard").iterdir()):
        board = EVENTS.EventAccumulator(str(file), purge_orphaned_data=False)
        board.Reload()
        for tag in board.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in board.Scalars(tag))
    return found


def written(run: Path, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines if key in line]


def test_a_live_run_shows_every_line_once(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(tracked(config, "tensorboard"), run)
    shown = points(run)
    assert shown["loss"] == written(run, "loss") and len(shown["loss"]) == 12
    assert shown["val_loss"] == written(run, "val_loss")
    assert [step for step, _ in shown["stream_rms/2"]] == [1, 5, 10]


def test_a_run_cut_between_checkpoints_does_not_repeat_points(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def pull_the_plug(line: dict[str, Any], steps: int) -> None:
        if line["step"] == 7:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError):
        train_run(tracked(config, "tensorboard"), run, on_step=pull_the_plug)
    resume_run(run)
    assert points(run)["loss"] == written(run, "loss")


def test_a_killed_process_keeps_its_points(config: TrainConfig, tmp_path: Path) -> None:
    # Spawned, not forked: a fork after autograd has begun threads cannot train.
    work = partial(train_run, tracked(config, "tensorboard"), tmp_path / "run", on_step=killed.at_step_7)
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(points(tmp_path / "run")["loss"]) == 7
    resume_run(tmp_path / "run")
    assert points(tmp_path / "run")["loss"] == written(tmp_path / "run", "loss")


def test_a_finished_run_is_sent_once(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train_run(config, run)
    assert not (run / "trackers").exists()
    assert main(["track", str(run), "--to", "tensorboard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["added"] == 12
    assert main(["track", str(run), "--to", "tensorboard"]) == 0
    assert "tensorboard: 0 new steps, up to step 12, in " in capsys.readouterr().out
    assert points(run)["loss"] == written(run, "loss")


def test_mistakes_get_a_sentence_and_no_folder(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord': did you mean 'tensorboard'\?"):
        train_run(tracked(config, "tensorbord"), tmp_path / "run")
    with pytest.raises(UserError, match="is no run with metrics"):
        track_run(tmp_path, ["tensorboard"])

    found = errors.importlib.import_module

    def absent(module: str) -> Any:
        if module == "wandb":
            raise ImportError(module)
        return found(module)

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs 'wandb', which is not installed: pip install 'loopscale\[track\]'"):
        train_run(tracked(config, "wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_does_not_stop_the_training(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        seen: ClassVar[list[int]] = []

        def log(self, step: int, values: Any) -> None:
            if step == 3 and 3 not in self.seen:
                self.seen.append(0)
                if self.seen.count(0) < 3:
                    raise ConnectionError("no route")
            self.seen.append(step)

        def close(self) -> None:
            pass

    monkeypatch.setitem(TRACKERS, "broken", Kind("json", lambda identity: Broken(), "{run}"))
    with pytest.warns(UserWarning, match=r"broken failed at step 3 \(no route\): training goes on without it; later"):
        assert train_run(tracked(config, "broken"), tmp_path / "run").exit_code == 0
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"took the steps up to 2 and then failed: no route"):
        track_run(tmp_path / "run", ["broken"])
    assert track_run(tmp_path / "run", ["broken"])[0].added == 10
    assert [step for step in Broken.seen if step] == list(range(1, 13))


def test_two_processes_do_not_send_the_same_run(config: TrainConfig, tmp_path: Path) -> None:
    train_run(config, tmp_path / "run")
    with following(tmp_path / "run", ["tensorboard"]), pytest.raises(UserError, match="another process sends"):
        track_run(tmp_path / "run", ["tensorboard"])


def test_numbers_are_found_wherever_they_are() -> None:
    line = {"step": 1, "loss": None, "text": "x", "ok": True, "a": {"b": [1, {"c": 2.5}]}}
    assert flat(line) == {"a/b/0": 1.0, "a/b/1/c": 2.5}
    check_trackers([])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_other_trackers_offline(config: TrainConfig, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    run, away = tmp_path / "run", {"TRACKIO_DIR": str(tmp_path / "trackio"), "HTTPS_PROXY": "http://127.0.0.1:9"}
    (tmp_path / "c.toml").write_text(tracked(config, name).to_toml())
    environment = {**os.environ, **away, "HTTP_PROXY": "http://127.0.0.1:9"}

    def loopscale(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "loopscale", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done

    done = loopscale("train", str(tmp_path / "c.toml"), "--out", str(run), "--json")
    assert json.loads(done.stdout)["status"] == "finished"
    assert json.loads(loopscale("track", str(run), "--to", name, "--json").stdout)[0]["added"] == 0
    if name == "wandb":
        assert len(list((run / "trackers" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    else:
        code = (
            "from trackio.sqlite_storage import SQLiteStorage as S\n"
            "run = S.get_runs('loopscale')[0]; print(len(S.get_logs('loopscale', run)))"
        )
        shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert shown.stdout.strip() == "12", shown.stderr


def test_a_copied_run_does_not_start_again(config: TrainConfig, tmp_path: Path) -> None:
    train_run(tracked(config, "tensorboard"), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert track_run(tmp_path / "copy", ["tensorboard"])[0].added == 0
