"""Slips of a first day, as a stranger makes them: each is one sentence that says what to write."""

import pytest
import torch
from torch import nn

import loopscale as ls
from loopscale.cli import main


def blocks():
    return nn.ModuleList(ls.ScaledResidual(nn.Linear(4, 4)) for _ in range(2))


@pytest.mark.parametrize(
    ("slip", "sentence"),
    [
        (lambda: ls.Loop(blocks(), 2)(torch.ones(1, 4), 16), "the number of loops is named: loop(x, loops=16)"),
        (lambda: ls.param_groups(ls.Loop(blocks(), 2), lr="1e-3"), "lr must be a positive number, got '1e-3'"),
        (lambda: ls.param_groups(blocks().parameters(), lr=0.01), "roles need names, pass the model itself"),
        (lambda: ls.check_parameterization(blocks(), loops=4), "try loops=(1, 2, 4, 8)"),
        (lambda: ls.convert(blocks(), layers=(1,), loops=4), "must name the first and the last layer of the core"),
    ],
)
def test_a_slip_in_python_says_what_to_write(slip, sentence):
    with pytest.raises(ls.UserError) as caught:
        slip()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["tune", "ok.toml", "--target", "8"], "--target has no axis '8': write loops=8"),
        # 10 what? Ten seconds would be a silent wrong turn for who means minutes.
        (
            ["tune", "ok.toml", "--target", "loops=8", "--budget", "10"],
            "the budget '10' is no time: write 90s, 10m or 2h",
        ),
        (["tune", "--target", "loops=8"], "name a config, or your code: loopscale tune config.toml"),
        (["train", "mine.py"], "(a model of yours is named by --model mine.py:make_model)"),
        (["train", "quoted.toml"], "it must be a whole number, without quotes"),
        (["transfer", "--loops", "1-16"], "is not a comma-separated list of whole numbers such as 1,2,4"),
        (["data", "verify", "nowhere"], "there is no folder nowhere: make it with loopscale data prepare"),
        (["report", "nowhere"], "there is no folder nowhere: give the folder of a study, a tuning or a run"),
    ],
)
def test_a_slip_on_the_command_line_says_what_to_write(line, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {"ok.toml": "[train]\nsteps = 2\n", "mine.py": "import torch\n", "quoted.toml": '[model]\nwidth = "64"\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(line) == 2
    said = capsys.readouterr()
    assert sentence in said.err and not said.out and "Traceback" not in said.err
    assert {path.name for path in tmp_path.iterdir()} == set(files)
