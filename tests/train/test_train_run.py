"""The run folder: what is written, exact continuation, damage, orderly ends."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from changed import changed
from safetensors.torch import load_file

from loopscale.errors import UserError
from loopscale.records import Provenance, read_record, write_record
from loopscale.train import (
    StepRecord,
    TrainConfig,
    generate,
    load_config,
    nonfinite,
    open_run,
    resume_run,
    train_run,
)
from loopscale.train import checkpoint as checkpoints
from loopscale.train.run import exclusive
from loopscale.train.training import prepare


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def exact(run: Path) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "seal")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines(run)]


def same_weights(one: Path, other: Path, step: int) -> bool:
    name = f"checkpoints/step-{step:06d}"
    files = ("model.safetensors", "optimizer.safetensors", "state.json")
    return all((one / name / file).read_bytes() == (other / name / file).read_bytes() for file in files)


@pytest.fixture(scope="module")
def finished(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train_run(tiny, run).exit_code == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_what_is_in_the_folder(finished: Path, tiny: TrainConfig) -> None:
    assert load_config(finished / "config.toml") == tiny.replaced("train", precision="fp32")  # "auto" is settled
    found = lines(finished)
    assert [line["step"] for line in found] == list(range(1, 13))
    assert all({"loss", "lr", "grad_norm", "tokens_per_second"} <= line.keys() for line in found)
    assert [line["step"] for line in found if "stream_rms" in line] == [1, 5, 10]
    assert [line["step"] for line in found if "val_loss" in line] == [6, 12]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-000008", "step-000012"]
    origin = json.loads((finished / "provenance.json").read_text())
    assert {"loopscale", "torch", "python", "commit", "hardware", "date", "seed", "data"} <= origin.keys()


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_resumed_run_is_the_uninterrupted_run(tiny: TrainConfig, tmp_path: Path, optimizer: str) -> None:
    config = changed(tiny, optim={"optimizer": optimizer})
    train_run(config, tmp_path / "whole")

    def pull_the_plug(line: dict[str, Any], steps: int) -> None:
        if line["step"] == 7:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError):
        train_run(config, tmp_path / "cut", on_step=pull_the_plug)
    assert len(lines(tmp_path / "cut")) == 7
    assert resume_run(tmp_path / "cut").status == "finished"
    assert exact(tmp_path / "cut") == exact(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole", 12)


def test_a_run_without_a_checkpoint_starts_again(run: Path, finished: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    said: list[str] = []
    resume_run(run, warn=said.append)
    assert said == ["the run has no checkpoint yet: it starts from step 1"]
    assert exact(run) == exact(finished) and same_weights(run, finished, 12)


def test_a_finished_run_says_so_again(run: Path, finished: Path) -> None:
    outcome = resume_run(run)
    assert (outcome.status, outcome.exit_code, outcome.val_loss) == ("finished", 0, lines(finished)[-1]["val_loss"])
    assert exact(run) == exact(finished)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_falls_back_to_the_checkpoint_before(run: Path, finished: Path) -> None:
    flip(run / "checkpoints/step-000012/model.safetensors")
    said: list[str] = []
    resume_run(run, warn=said.append)
    assert said == [
        "checkpoint step-000012 is damaged (model.safetensors does not match its checksum): the one before it is used"
    ]
    assert exact(run) == exact(finished) and same_weights(run, finished, 12)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", checkpoints.STATE, checkpoints.SUMS])
def test_any_missing_file_is_damage(run: Path, file: str) -> None:
    (run / "checkpoints/step-000012" / file).unlink()
    assert checkpoints.damage(run / "checkpoints/step-000012") == f"{file} is missing or unreadable"


def test_all_checkpoints_damaged(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        flip(path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"^no checkpoint in .* is whole \(step-000008: optimizer\.safet"):
        resume_run(run)


def test_damaged_folders_have_their_sentences(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(there is no such folder\)"):
        resume_run(tmp_path / "nowhere")
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics[50:])
    with pytest.raises(UserError, match=r"metrics\.jsonl at line 1 is damaged"):
        resume_run(run)
    (run / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"provenance\.json is damaged"):
        resume_run(run)
    (run / "config.toml").unlink()
    with pytest.raises(UserError, match=r"is not a run folder \(it has no config\.toml\)"):
        resume_run(run)


def test_a_checkpoint_of_another_network(run: Path) -> None:
    file = run / "config.toml"
    file.write_text(file.read_text().replace("width = 16", "width = 32"))
    with pytest.raises(
        UserError, match=r"is of another model: model\.width is 16 there and 32 in config\.toml: restore"
    ):
        resume_run(run)


def test_a_checkpoint_of_another_rule(run: Path) -> None:
    """The shapes are the same: only the name tells."""
    file = run / "config.toml"
    file.write_text(file.read_text().replace('"looped"', '"sqrt"').replace("lr = 0.0078125", "lr = 0.01"))
    with pytest.raises(
        UserError, match=r"another model: model\.rule is looped there and sqrt in config\.toml: restore"
    ):
        resume_run(run)


def test_a_checkpoint_of_another_optimizer(run: Path) -> None:
    file = run / "config.toml"
    file.write_text(file.read_text().replace('"adamw"', '"sgd"'))
    with pytest.raises(UserError, match=r"is of another optimizer: optim\.optimizer is adamw there and sgd in"):
        resume_run(run)


def test_a_changed_rate_is_said(run: Path) -> None:
    file, said = run / "config.toml", []
    file.write_text(file.read_text().replace("lr = 0.0078125", "lr = 0.01").replace("keep = 2", "keep = 3"))
    resume_run(run, warn=said.append)
    assert said == [
        "optim.lr was 0.0078125 and is now 0.01: from this step on the run no longer reproduces the original"
    ]


def test_an_out_folder_that_is_taken(run: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"already holds a run: continue it with loopscale train --resume"):
        train_run(tiny, run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already exists and is no empty folder"):
        train_run(tiny, tmp_path / "other")


def test_a_kill_while_the_folder_is_made_does_not_block_it(tiny: TrainConfig, tmp_path: Path) -> None:
    for name in ("provenance.json", ".config.toml.abc123"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("{")
    assert train_run(changed(tiny, train={"steps": 2}), tmp_path / "run").status == "finished"


def test_a_mistake_leaves_no_folder(tiny: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train_run(changed(tiny, data={"path": str(tmp_path / "absent.txt")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoints.sharded, "save_file", full)
    with pytest.raises(UserError, match=r"^the disk is full while writing .*step-000004"):
        train_run(tiny, tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_a_non_finite_loss_ends_the_run(tiny: TrainConfig, tmp_path: Path) -> None:
    outcome = train_run(changed(tiny, optim={"lr": 1e30, "warmup": 0.0, "clip": 0.0}), tmp_path / "run")
    assert (outcome.status, outcome.exit_code, outcome.step) == ("nonfinite", 1, 1)
    assert re.fullmatch(
        r"the (loss|gradient) is not finite at step 2: .+; try a lower optim\.lr \(now 1e\+30\), "
        r"a longer optim\.warmup \(now 0\), optim\.clip = 1",
        outcome.sentence,
    )
    assert None in (lines(tmp_path / "run")[-1]["loss"], lines(tmp_path / "run")[-1]["grad_norm"])


def test_the_module_and_the_visit_are_named(tiny: TrainConfig) -> None:
    training, calls = prepare(changed(tiny, model={"loops": 4})), []

    def breaks(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * math.inf if len(calls) == 3 else output

    training.model.core[0].mlp.down.register_forward_hook(breaks)
    assert nonfinite.find(training) == "'core.0.mlp.down' at visit 3"
    calls.clear()
    sentence = nonfinite.explain(training, StepRecord(7, math.nan, 0.1, math.nan))
    assert sentence == (
        "the loss is not finite at step 7: the first non-finite value came out of 'core.0.mlp.down' at visit 3; "
        "try a lower optim.lr (now 0.0078125), a longer optim.warmup (now 0.1)"
    )


def test_a_second_process_is_kept_out(run: Path) -> None:
    with exclusive(open_run(run)), pytest.raises(UserError, match=r"^another process is training .*: wait until"):
        resume_run(run)


def test_generate_needs_the_runs_tokenizer(run: Path) -> None:
    (run / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"^the stored tokenizer is damaged"):
        generate(run, "a")
    (run / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing or unreadable: restore it, or train again$"):
        generate(run, "a")


def test_data_that_changed_are_noticed(run: Path) -> None:
    file = run / "provenance.json"
    origin = read_record(file, Provenance)
    write_record(file, origin.model_copy(update={"data": {**origin.data, "sha256": "0"}}))
    with pytest.raises(UserError, match=r"^the data of .* have changed since it began: restore them"):
        resume_run(run)


def test_the_files_are_plain_safetensors(finished: Path) -> None:
    weights = load_file(finished / "checkpoints/step-000012/model.safetensors")
    assert "embedding.weight" in weights


def test_generate_repeats_itself_and_follows_the_seed(finished: Path) -> None:
    first = generate(finished, "loop ", 20, 0.8, seed=1)
    assert first.startswith("loop ") and first == generate(finished, "loop ", 20, 0.8, seed=1)
    assert first != generate(finished, "loop ", 20, 0.8, seed=2)
    assert generate(finished, "loop ", 5, 0.0, seed=1) == generate(finished, "loop ", 5, 0.0, seed=2)
    assert generate(finished, "loop ", 5, 0.8, seed=1, loops=5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": ""}, "the prompt is empty: give at least one character to continue"),
        ({"tokens": 0}, "tokens must be from 1 to 1,000,000, not 0"),
        ({"temperature": -1.0}, "temperature must be 0 (the likeliest token) or a positive number, not -1.0"),
        ({"temperature": math.nan}, "temperature must be 0 (the likeliest token) or a positive number, not nan"),
        ({"loops": 0}, "loops must be from 1 to 1,000,000, not 0"),
    ],
)
def test_what_generate_refuses(finished: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        generate(finished, **{"prompt": "a", **arguments})
    assert str(caught.value) == sentence
