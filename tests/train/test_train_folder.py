"""One training, one folder: pairs of real processes, folders that are moved away, records that are damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ranked
from changed import changed
from ranks import begin, finish

from loopscale.cli import main
from loopscale.data import Preparation, prepare_data
from loopscale.errors import UserError
from loopscale.files import alone, folder_aside, new_folder
from loopscale.records import Journal, Trial, read_steps
from loopscale.report import write_run_report
from loopscale.trackers import track_run
from loopscale.train import TrainConfig, resume_run, train_run
from loopscale.train.load_model import load_model


@pytest.fixture(scope="module")
def finished(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_run(tiny, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def at_once(count: int, out: Path, config: TrainConfig) -> list[Any]:
    """Let `count` processes begin a training in one folder at the same moment; give their answers."""
    gate = out.parent / "gate"
    started = [
        begin(1, ranked.run_at_the_gate, config.to_dict(), str(out), str(gate), number)[0] for number in range(count)
    ]
    while len(list(out.parent.glob("ready-*"))) < count:
        pass
    gate.touch()
    return finish(started)


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_trainings_that_begin_at_once_one_gets_the_folder(
    tiny: TrainConfig, tmp_path: Path, attempt: int
) -> None:
    config = changed(tiny, train={"steps": 30, "checkpoint_every": 5, "eval_every": 0})
    answers = at_once(2, tmp_path / "run", config)
    assert sorted(kind for kind, _ in answers) == ["error", "result"]
    said = next(value for kind, value in answers if kind == "error")
    assert "another process is training" in said or "already holds a run" in said
    assert [line["step"] for line in read_steps(tmp_path / "run/metrics.jsonl")] == list(range(1, 31))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-000025", "step-000030"]


@pytest.mark.parametrize("gone", ["moved", "removed"])
def test_a_folder_that_goes_away_ends_the_training(tiny: TrainConfig, tmp_path: Path, gone: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def go(line: dict[str, Any], steps: int) -> None:
        if line["step"] == 6:
            run.rename(elsewhere)
            if gone == "removed":
                shutil.rmtree(elsewhere)

    with pytest.raises(UserError, match=r"was moved or removed while it was trained: the training ends"):
        train_run(tiny, run, on_step=go)
    assert not run.exists()
    if gone == "moved":
        assert resume_run(elsewhere).status == "finished"


def test_a_training_that_fails_before_its_first_step_leaves_nothing(
    tiny: TrainConfig, text: Path, tmp_path: Path
) -> None:
    prepare_data(str(text), tmp_path / "shards", Preparation(validation_fraction=0.2))
    shard = tmp_path / "shards/train-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    config = changed(tiny, data={"path": str(tmp_path / "shards"), "prefetch": 0}, train={"precision": "fp32"})
    with pytest.raises(UserError, match=r"train-00000\.safetensors is damaged"):
        train_run(config, tmp_path / "runs/run")
    assert sorted(path.name for path in tmp_path.rglob("run*")) == ["runs"]
    shard.write_bytes(content)
    assert train_run(config, tmp_path / "runs/run").status == "finished"


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen(
        ["python3", "-c", f"import fcntl, sys; f = open({str(path)!r}, 'w'); f.write('4711\\n'); f.flush(); "
         "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    with (
        pytest.raises(UserError, match=r"^busy \(process 4711\) \{braces\}$"),
        alone(path, "busy ({process}) {braces}"),
    ):
        pass
    holder.kill()
    holder.wait()
    with alone(path, "busy"):
        assert path.exists()


def test_a_link_in_a_folder_of_a_stranger_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine\n")
    trial = Trial(key="a", cell={"rule": "looped", "loops": 1, "lr": 0.1, "seed": 0}, loss=1.0, diverged=False)
    (run / "trackers").mkdir()
    for name, use in {
        ".lock": lambda: resume_run(run),
        "trackers/tensorboard.step": lambda: track_run(run, ["tensorboard"]),
        "trackers/tensorboard.lock": lambda: track_run(run, ["tensorboard"]),
        "trials.jsonl": lambda: Journal(run).append(trial),
    }.items():
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(mine)
        with pytest.raises(UserError, match=r"is a link to another place|is damaged"):
            use()
        (run / name).unlink()
    assert mine.read_text() == "mine\n"


def test_folders_of_a_failure_are_taken_away(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a/b"):
        raise RuntimeError
    with pytest.raises(RuntimeError), folder_aside(tmp_path / "c/d") as aside:
        (aside / "file").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with folder_aside(tmp_path / "c/d") as aside:
        (aside / "file").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["d"] and (tmp_path / "c/d/file").exists()


def set_key(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def flip_a_digit(path: Path) -> None:
    """Change the value of a loss in the third line."""
    lines = path.read_text().splitlines(keepends=True)
    line = json.loads(lines[2])
    lines[2] = json.dumps({**line, "loss": line["loss"] + 0.001}) + "\n"
    path.write_text("".join(lines))


READ = {"report": write_run_report, "track": lambda run: track_run(run, ["tensorboard"]), "resume": resume_run}


@pytest.mark.parametrize("use", READ.values(), ids=READ)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_digit, "at line 3 is damaged or was edited"),
        (
            lambda path: path.write_text(path.read_text().replace('"step": 3,', '"step": null,')),
            "line 3 is damaged at step",
        ),
        (lambda path: path.write_text("[1]\n" + path.read_text()), "at line 1 is damaged"),
        (lambda path: path.write_text("[" * 9000 + "\n" + path.read_text()), "at line 1 is damaged"),
        (
            lambda path: path.write_text("".join(path.read_text().splitlines(True)[1::2])),
            "a step is missing|one line for each",
        ),
    ],
)
def test_a_damaged_line_of_metrics_is_named(run: Path, use: Any, damage: Any, said: str) -> None:
    damage(run / "metrics.jsonl")
    with pytest.raises(UserError, match=said):
        use(run)


@pytest.mark.parametrize("use", [write_run_report, resume_run])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 7, "does not fit its seal"),
        ("data", None, "damaged at data"),
        ("resumed", 3, "damaged at resumed"),
        ("schema", 99, "newer than the 1 known here"),
    ],
)
def test_a_damaged_provenance_is_named(run: Path, use: Any, key: str, value: Any, said: str) -> None:
    set_key(run / "provenance.json", key, value)
    with pytest.raises(UserError, match=rf"provenance\.json.*{said}"):
        use(run)


def test_an_edited_config_is_not_shown_as_what_was_trained(run: Path) -> None:
    file = run / "config.toml"
    file.write_text(file.read_text().replace("lr = 0.0078125", "lr = 0.0178125"))
    with pytest.raises(UserError, match=r"config\.toml was edited since the run was trained with it"):
        write_run_report(run)
    said: list[str] = []
    load_model(run, said.append)
    assert said == [
        "config.toml was edited since this checkpoint was written: optim.lr was 0.0078125 and is now 0.0178125"
    ]
    resume_run(run)
    write_run_report(run)


def test_a_refused_run_leaves_no_folder(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text(tiny.to_toml())
    monkeypatch.setattr("loopscale.train.run.write_text", lambda *_: (_ for _ in ()).throw(UserError("no")))
    assert main(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "a/b/run")]) == 2
    assert not (tmp_path / "a").exists()
