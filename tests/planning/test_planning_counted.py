"""What is counted on a user model is what the formulas say of the same model; a command away from the price."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopscale.cli import main
from loopscale.train import TrainConfig, make_config
from loopscale.train.counted import counted
from loopscale.train.needs import shape_of

FILE = Path(__file__).parent / "house_as_user.py"


def config(loops: int) -> TrainConfig:
    return make_config({"model": {"width": 128, "layers": 2, "loops": loops}, "data": {"context": 128}})


def test_the_house_model_counted_as_a_stranger_is_what_the_formulas_say() -> None:
    kept = {}
    for loops in (2, 6):
        shape = shape_of(config(loops))
        found = counted(config(loops).using(f"{FILE}:make_model"))
        assert found.parameters()["total"] == shape.parameters()["total"]
        counts, expected = found.flops(), shape.flops()
        assert counts["model"] == pytest.approx(expected["model"], rel=0.02)
        assert counts["forward"] == pytest.approx(expected["forward"], rel=0.02)
        kept[loops] = found.kept_bytes / found.units
    by_formula = shape_of(config(6)).kept_per_token() - shape_of(config(2)).kept_per_token()
    assert kept[6] - kept[2] == pytest.approx(by_formula, rel=0.15)


def test_the_command_prices_a_model_and_its_tuning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.width=4096", "--set", "model.loops=4", "--set", "train.steps=1000", "--gpus", "1"]
    assert main(["plan", "--model", f"{FILE}:make_model", *size, "--tuning", "--json"]) == 0
    large = json.loads(capsys.readouterr().out)
    assert large["parameters"]["total"] > 10**8 and large["unit"] == "token"
    assert large["memory"]["weights"] == 4 * large["parameters"]["total"]
    assert 0 < large["tuning"]["device_hours"] < large["hours"]
    assert main(["plan", "--model", f"{FILE}:make_model", *size, "--memory", "1GB"]) == 1
    assert "fsdp and accumulate do not help: take more devices" in capsys.readouterr().out
    assert main(["plan", "--model", f"{FILE}:missing"]) == 2
    assert main(["plan", "--here"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_model_that_reads_values_is_counted_on_the_cpu(tmp_path: Path) -> None:
    text = FILE.read_text() + "\n\nimport torch\n\ndef make_batch(split, step, seed, batch_size):\n"
    (tmp_path / "reads.py").write_text(f"{text}    return torch.ones(batch_size, 64)\n")
    found = counted(make_config({"model": {"loops": 3}}).using(f"{tmp_path}/reads.py:reading"))
    assert found.unit == "row" and found.row_flops == (3 + 3 + 2) * 2 * 64 * 64  # the input needs no gradient
