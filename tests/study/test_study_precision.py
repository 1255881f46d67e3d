"""A study has one precision: measured at its largest trial, then that of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopscale.cli import main
from loopscale.records import Journal
from loopscale.study import with_precision
from loopscale.train import make_config, precision
from loopscale.transfer import Arm, Cell, StudyPlan

BASE = make_config(
    {
        "model": {"width": 32, "head_dim": 16},
        "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
        "train": {"steps": 60, "device": "cpu"},
    }
)
PLAN = StudyPlan(base=BASE, rules=("looped",), loops=(1, 3), lrs=(0.01, 0.02, 0.03))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At how many loops a precision was measured; there bf16 takes half of the time."""
    loops: list[int] = []

    def measure(task: object) -> dict[str, object]:
        loops.append(task.config.model.loops)
        return {"seconds": {"fp32": 2.0, "bf16": 1.0}, "ratio": 0.5, "refused": None}

    monkeypatch.setattr(precision, "measure", measure)
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    return loops


def settled(asked: str, record: Path, said: list[str]) -> StudyPlan:
    return with_precision(PLAN, asked, record, said.append)


def test_auto_is_measured_once_at_the_largest_cell_and_holds_for_all(tmp_path: Path, measured: list[int]) -> None:
    said: list[str] = []
    plan = settled("auto", tmp_path / "study.json", said)
    assert measured == [3]
    precisions = {plan.config(Cell(Arm("looped", 1.0, n), 0.01, 0)).train.precision for n in plan.loops}
    assert precisions == {"bf16"}
    assert said == [
        "precision bf16 for all trials: a step in bf16 takes 0.50 of the time in fp32 at N = 3, L = 1, d = 32"
    ]
    assert settled("fp32", tmp_path / "study.json", said) is PLAN and measured == [3]


def test_a_study_goes_on_in_the_precision_of_its_trials(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"base": {"train": {"precision": "fp32"}}}))
    plan = settled("auto", tmp_path / "study.json", [])
    assert plan.base.train.precision == "fp32" and not measured


@pytest.mark.slow
def test_the_command_records_what_it_chose(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(BASE.to_toml().replace("steps = 60", "steps = 50"))
    command = ["tune", str(tmp_path / "small.toml"), "--target", "loops=2", "--trials", "3", "--seeds", "1"]
    command += ["--tune", "lr", "--executor", "local", "--workers", "1", "--out", str(tmp_path / "t")]
    for _ in range(2):
        assert main(command) == 0
    assert "precision bf16 for all trials" in capsys.readouterr().err and len(measured) == 1
    configs = [trial.config for trial in Journal(tmp_path / "t").trials.values()]
    assert {config["train"]["precision"] for config in configs} == {"bf16"}
    assert 'precision = "bf16"' in (tmp_path / "t/tuned.toml").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"base": {"train": {"precision": "x"}}}', '{"base": 1}', "[" * 100_000])
def test_a_damaged_plan_gives_no_precision_and_no_traceback(tmp_path, text):
    from loopscale.study.design import _recorded

    (tmp_path / "study.json").write_text(text)
    assert _recorded(tmp_path / "study.json") is None
    (tmp_path / "study.json").write_text('{"base": {"train": {"precision": "bf16"}}}')
    assert _recorded(tmp_path / "study.json") == "bf16"
