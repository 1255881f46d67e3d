"""`loopscale diagnose`: targets, exit codes, bad input."""

from __future__ import annotations

import json

import pytest
import torch

from loopscale.cli import main

SOURCE = """
import math
import torch
from torch import nn
class Loop(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.scale, self.n_loops = scale, 6
    def forward(self, x):
        for _ in range(self.n_loops):
            x = x + self.scale * self.down(torch.relu(self.up(self.norm(x))))
        return x
def good(): return Loop(1 / 6)
def bad(): return Loop(1.0)
def plain(): return nn.Linear(4, 4)
def needs(size): return nn.Linear(size, size)
def breaks(): raise RuntimeError("no such weights")
def wrong(): return 3
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "zoo_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_exit_codes_and_json(source, capsys):
    assert main(["diagnose", "zoo_of_mine.py:good"]) == 0
    assert "healthy" in capsys.readouterr().out
    assert main(["diagnose", "zoo_of_mine:bad", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["code"] for f in found["findings"]] == ["unscaled-residual"]
    assert set(found["findings"][0]) == {"code", "severity", "where", "evidence", "cause", "remedy"}
    assert main(["diagnose", "zoo_of_mine.py:bad", "--fail-on", "never"]) == 0
    assert main(["diagnose", "zoo_of_mine.py:plain"]) == 1
    assert "not looped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["zoo_of_mine.py:goood"], "did you mean 'good'"),
        (["zoo_of_mine.py:make"], "has no 'make': known: Loop, bad, breaks, good, needs, plain, wrong"),
        (["empty.py:make"], "has no 'make', nor any other function"),
        (["zoo_of_mine.py:needs"], "needs arguments (size)"),
        (["zoo_of_mine.py:breaks"], "no such weights"),
        (["zoo_of_mine.py:wrong"], "returned a int"),
        (["zoo_of_mine.py"], "write zoo_of_mine.py:factory"),
        (["absent.py:f"], "there is no file absent.py"),
        (["absent_package.module:f"], "cannot import"),
        (["absent"], "there is no 'absent'"),
        (["."], "neither config.toml"),
        (["zoo_of_mine.py:good", "--loops-range", "8"], "LOW:HIGH"),
        (["zoo_of_mine.py:good", "--loops-range", "0:8"], "both at least 1"),
        (["zoo_of_mine.py:good", "--loops-range", "32:1"], "LOW must be smaller than HIGH: give 1:32"),
        (["zoo_of_mine.py:good", "--loops-arg", "n_lops"], "n_loops"),
        (["unsafe.pt"], "is refused"),
        (["weights.pt"], "holds weights and no model"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(source, capsys, arguments, says):
    torch.save({"a": torch.ones(2)}, "weights.pt")
    torch.save(torch.nn.Linear(2, 2), "unsafe.pt")
    (source / "empty.py").write_text("import math\n")
    assert main(["diagnose", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_weights_and_page(source, capsys):
    import zoo_of_mine

    torch.save(zoo_of_mine.bad().state_dict(), "w.pt")
    assert main(["diagnose", "zoo_of_mine.py:bad", "--weights", "w.pt", "--out", "told", "--loops-range", "1:8"]) == 1
    assert json.loads((source / "told" / "diagnosis.json").read_text())["loops"] == 6
    assert "unscaled-residual" in (source / "told" / "report.html").read_text()


def test_run_folder(source, capsys):
    from loopscale.train import make_config

    (source / "run").mkdir()
    (source / "run" / "config.toml").write_text(make_config({"model": {"width": 32, "loops": 4}}).to_toml())
    assert main(["diagnose", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loops"] == 4


def test_hugging_face_folder(source, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        hidden_size=32,
        embedding_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=61,
    )
    transformers.AlbertModel(config).save_pretrained("albert")
    capsys.readouterr()
    assert main(["diagnose", "albert", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["growth"] == "bounded"
