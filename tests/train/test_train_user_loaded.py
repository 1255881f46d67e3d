"""A run folder of a user model is sampled, diagnosed and exported like any other, once its code is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from changed import changed

from loopscale.cli import main
from loopscale.errors import UserError
from loopscale.train import TrainConfig, generate, train_run
from loopscale.train.load_model import load_model

CODE = Path(__file__).parent / "user_code.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{shutil.copy(CODE, tmp_path_factory.mktemp('code') / 'mine.py')}:make_model"


@pytest.fixture(scope="module")
def run(tiny: TrainConfig, place: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    train_run(changed(tiny, model={"loops": 3}, train={"steps": 3, "checkpoint_every": 3}).using(place), folder)
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_text_is_the_likeliest_token_of_the_trained_model_each_time(run: Path, place: str) -> None:
    trained = load_model(run, model=place)
    ids = list(trained.tokenizer.encode("loop "))
    for _ in range(4):
        ids.append(int(trained.model(torch.tensor([ids]))[0, -1].argmax()))
    text = generate(run, "loop ", 4, 0.0, model=place)
    assert text == "loop " + trained.tokenizer.decode(ids[5:])
    deeper = load_model(run, model=place, loops=7).model
    assert deeper.loop.loops == 7 and trained.model.loop.loops == 3
    assert all(torch.equal(a, b) for a, b in zip(deeper.parameters(), trained.model.parameters(), strict=True))


@pytest.mark.parametrize("command", ["generate RUN --prompt a", "export RUN out", "diagnose RUN"])
def test_no_command_runs_code_that_only_the_folder_names(
    run: Path, place: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("loopscale.train.load_model.user_model", None)
    assert main(command.replace("RUN", str(run)).split()) == 2
    assert f"add --model {place}" in said(capsys)


def test_diagnose_reads_the_trained_weights_at_any_number_of_loops(
    run: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for loops, options in ((3, []), (5, ["--loops", "5"])):
        assert main(["diagnose", str(run), "--model", place, "--json", "--fail-on", "never", *options]) == 0
        assert json.loads(capsys.readouterr().out)["loops"] == loops


def test_a_file_that_changed_is_told_and_a_different_one_refused(
    run: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"is a run of .*mine\.py:make_model, not of .*user_code\.py:dropping"):
        load_model(run, model=f"{CODE}:dropping")
    assert main(["generate", str(run), "--prompt", "a", "--model", place, "--cache", "none"]) == 2
    assert "cache is an option of the house model" in said(capsys)
    with pytest.raises(UserError, match="has no tokenizer and knows no text"):
        (moved := run.parent / "moved").mkdir()
        for name in ("config.toml", "provenance.json", "checkpoints"):
            (shutil.copytree if name == "checkpoints" else shutil.copy)(run / name, moved / name)
        generate(moved, "a", 1, model=place)


def test_export_says_where_the_weights_are(run: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    out = run.parent / "hf"
    assert main(["export", str(run), str(out), "--model", place]) == 2
    assert "builds a GPT, which is not a model of transformers: its weights are" in said(capsys)
    assert not out.exists()
