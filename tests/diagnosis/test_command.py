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
class Deep(Loop):
    def __init__(self, loops=1):
        super().__init__(1.0)
        self.n_loops = loops
def deep(steps): return Deep(steps)
def plain(): return nn.Linear(4, 4)
def needs(size): return nn.Linear(size, size)
def breaks(): raise RuntimeError("no such weights")
def wrong(): return 3
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Take few products with the Jacobian: what the command says of a diagnosis is meant here, not its digits."""
    monkeypatch.setattr("loopscale.diagnosis.measure.budget", lambda seen: 8)


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
    assert set(found["findings"][0]) == {"code", "severity", "where", "evidence", "cause", "remedy", "tried", "lines"}
    assert main(["diagnose", "zoo_of_mine.py:bad", "--fail-on", "never"]) == 0
    assert main(["diagnose", "zoo_of_mine.py:plain"]) == 1
    assert "not looped" in capsys.readouterr().out


def test_loops_go_to_the_factory(source, capsys):
    assert main(["diagnose", "zoo_of_mine.py:Deep"]) == 1
    assert "set 'n_loops' to more than 1 (on the command line with --loops)" in capsys.readouterr().out
    for more in (["zoo_of_mine.py:Deep"], ["zoo_of_mine:deep", "--loops-arg", "steps", "--loops-range", "1:8"]):
        assert main(["diagnose", *more, "--loops", "5", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["loops"] == 5


def test_the_same_command_prints_the_same_numbers(source, capsys):
    said = []
    for _ in range(2):
        state = torch.random.get_rng_state()
        main(["diagnose", "zoo_of_mine.py:bad", "--json"])
        assert torch.equal(torch.random.get_rng_state(), state)
        said.append(json.loads(capsys.readouterr().out)["gain"])
        torch.randn(3)
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["zoo_of_mine.py:goood"], "did you mean 'good'"),
        (["zoo_of_mine.py:make"], "has no 'make': known: Deep, Loop, bad, breaks, deep, good, needs, plain, wrong"),
        (["empty.py:make"], "has no 'make', nor any other function"),
        (["zoo_of_mine.py:needs"], "needs arguments (size)"),
        (["zoo_of_mine.py:deep"], "needs arguments (steps)"),
        (["zoo_of_mine.py:good", "--loops", "4"], "takes none: write a factory that does, def make(loops): "),
        (["zoo_of_mine.py:Deep", "--loops", "4", "--loops-arg", "n"], "--loops 4 goes to a factory's argument 'n'"),
        ([".", "--loops", "4"], "and . takes none: write a factory"),
        (["zoo_of_mine.py:Deep", "--loops", "0"], "invalid value for '--loops': 0 is less than 1"),
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


UNSCALED = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, loops, eps):
        super().__init__()
        self.table, self.loops, self.eps = nn.Embedding(97, 32), loops, eps
        self.norm, self.mlp = nn.LayerNorm(32), nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, tokens):
        x = self.table(tokens)
        for _ in range(self.loops):
            x = x + self.eps * self.mlp(self.norm(x))
        return x

def make(loops=4):
    return Model(loops, 1.0)

def right(loops=4):
    return Model(loops, 1 / loops)
"""


@pytest.fixture
def unscaled(tmp_path):
    (tmp_path / "mine.py").write_text(UNSCALED)
    return tmp_path / "mine.py"


def test_fix_attaches_the_remedy_and_diagnoses_again(unscaled, capsys):
    assert main(["diagnose", "--model", f"{unscaled}:make"]) == 1
    assert "ls.attach(model, loops=4, layers=1" in capsys.readouterr().out
    assert main(["diagnose", f"{unscaled}:make", "--fix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_compare_says_what_differs(unscaled, capsys):
    assert main(["diagnose", f"{unscaled}:make", "--compare", f"{unscaled}:right", "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)
    assert changes["findings"] == [["unscaled-residual"], []] and changes["growth"] == ["linear", "bounded"]


def test_code_that_a_folder_brings_is_not_run(tmp_path, capsys):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert main(["diagnose", str(tmp_path)]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err and not (tmp_path / "ran").exists()


TASK = """
import loopscale as ls
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, loops, width):
        super().__init__()
        self.read, self.out = nn.Linear(3, width), nn.Linear(width, 2)
        self.loop = ls.Loop(nn.Sequential(ls.ScaledResidual(nn.Linear(width, width), nn.LayerNorm(width))), loops)

    def forward(self, points):
        return self.out(self.loop(self.read(points["at"])))


def make_model(loops, width):
    return Model(loops, width)


def make_batch(split, step, seed, batch_size):
    points = torch.randn(batch_size, 3, generator=torch.Generator().manual_seed(seed))
    return {"at": points}, torch.zeros(batch_size, dtype=torch.long)
"""


def test_the_file_that_trains_is_diagnosed_as_it_is(tmp_path, capsys):
    (tmp_path / "task.py").write_text(TASK)
    assert main(["diagnose", "--model", f"{tmp_path}/task.py:make_model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loops"] == 4, "the config's own number, where none is given"
    assert main(["diagnose", f"{tmp_path}/task.py:make_model", "--loops", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loops"] == 6
    (tmp_path / "wrong.py").write_text(TASK.replace("torch.randn(batch_size, 3", "torch.rand(batch_size, None"))
    assert main(["diagnose", f"{tmp_path}/wrong.py:make_model"]) == 2
    assert "make_batch beside" in capsys.readouterr().err
