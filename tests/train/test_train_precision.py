"""`train.precision = "auto"` measures and says why; `--profile` says where the time went."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from changed import changed

from loopscale.cli import main
from loopscale.train import TrainConfig, fit, load_config, precision, train_run
from loopscale.train.training import make_task

CODE = Path(__file__).parent / "user_code.py"


@pytest.fixture
def long(tiny: TrainConfig) -> TrainConfig:
    return changed(tiny, train={"steps": 60, "eval_every": 0, "stream_every": 0})


@pytest.mark.parametrize("ratio,chosen", [(0.7, "bf16"), (0.95, "fp32")])
def test_auto_takes_what_is_faster_and_the_run_records_it(
    long: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, chosen: str
) -> None:
    measured = {"seconds": {"fp32": 1.0, "bf16": ratio}, "ratio": ratio, "refused": None}
    monkeypatch.setattr(precision, "measure", lambda task: measured)
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    train_run(long, tmp_path / "run")
    record = json.loads((tmp_path / "run/provenance.json").read_text())["precision"]
    assert record["chosen"] == chosen and f"{ratio:.2f} of the time in fp32" in record["why"]
    assert load_config(tmp_path / "run/config.toml").train.precision == chosen


def test_measuring_leaves_the_task_as_it_was(long: TrainConfig) -> None:
    task = make_task(long)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    drawn = torch.get_rng_state()
    found = precision.measure(task)
    assert found["ratio"] > 0 and found["refused"] is None and set(found["seconds"]) == {"fp32", "bf16"}
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()) and all(p.grad is None for p in task.model.parameters())


def test_a_model_whose_stream_would_be_bf16_stays_in_fp32(long: TrainConfig) -> None:
    found = precision.measure(make_task(long.using(f"{CODE}:bf16_stream")))
    assert found["refused"] == "under autocast the stream of this model would be bf16"


def test_a_short_run_and_a_processor_without_instructions_measure_nothing(
    tiny: TrainConfig, long: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measure", lambda task: {}["never"])
    assert "do not repay" in precision.settled(make_task(tiny)).origin["precision"]["why"]
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    settled = precision.settled(make_task(long))
    assert (settled.config.train.precision, settled.origin["precision"]["why"]) == ("fp32", "no bf16 instructions here")


def test_bf16_without_instructions_is_said_with_its_price(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    monkeypatch.setattr(precision, "measure", lambda task: {"ratio": 3.14159})
    task = make_task(tiny)
    assert precision.slower(task) is None
    asked = replace(task, config=tiny.replaced("train", precision="bf16"))
    assert "a step takes 3.1 times as long as in fp32" in str(precision.slower(asked))


def test_the_losses_of_both_are_as_near_as_two_seeds(long: TrainConfig) -> None:
    full, half, other = (
        fit(config).val_loss
        for config in (
            long.replaced("train", precision="fp32"),
            long.replaced("train", precision="bf16"),
            long.replaced("train", precision="fp32", seed=1),
        )
    )
    assert full is not None and half is not None and other is not None
    assert full != half and abs(full - half) < abs(full - other)


def test_a_study_has_one_precision(tiny: TrainConfig) -> None:
    assert tiny.train.precision == "auto" and tiny.for_study().train.precision == "fp32"
    assert tiny.replaced("train", precision="bf16").for_study().train.precision == "bf16"


@pytest.mark.parametrize("model", [[], ["--model", f"{CODE}:make_model"]], ids=["house", "user"])
def test_the_profile_says_where_the_time_went(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: list[str]
) -> None:
    (tmp_path / "c.toml").write_text(tiny.to_toml())
    assert main(["train", str(tmp_path / "c.toml"), *model, "--profile", "--out", str(tmp_path / "run")]) == 0
    table = capsys.readouterr().out.partition("total")[2].splitlines()
    names = [" ".join(line.split()[:-3]) for line in table[1:]]
    assert names == [
        *("data", "forward", "visit 1", "visit 2", "backward", "optimiser", "evaluation", "checkpoint", "waiting"),
        "the rest",
    ]
    seconds = dict(zip(names, (float(line.split()[-3]) for line in table[1:]), strict=True))
    total = float(table[0].split()[0])
    assert 0 < seconds["visit 1"] + seconds["visit 2"] <= seconds["forward"] + 1e-3
    parts = sum(value for name, value in seconds.items() if not name.startswith("visit"))
    assert parts == pytest.approx(total, abs=0.01)
