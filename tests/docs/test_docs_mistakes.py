"""Slips of a first day, as a stranger makes them: each is one sentence that says what to write."""

import pytest
import torch
from torch import nn

import loopscale as ls
from loopscale.cli import main
from loopscale.train import fit, load_config, make_config, train_run


def blocks():
    return nn.ModuleList(ls.ScaledResidual(nn.Linear(4, 4)) for _ in range(2))


@pytest.mark.parametrize(
    ("slip", "sentence"),
    [
        (lambda: ls.Loop(blocks(), 2)(torch.ones(1, 4), 16), "the number of loops is named: loop(x, loops=16)"),
        (lambda: ls.param_groups(ls.Loop(blocks(), 2), lr="1e-3"), "lr must be a positive number, got '1e-3'"),
        (lambda: ls.param_groups(blocks().parameters(), lr=0.01), "roles need names, pass the model itself"),
        (lambda: ls.check_parameterization(blocks(), loops=4), "try loops=(1, 2, 4, 8)"),
        # Something in the place of something else: what was wanted, what came, and what to write.
        (lambda: ls.shard_looped(ls.Loop(blocks(), 2), 2), "expected a DeviceMesh, got int: such as init_device_mesh("),
        (lambda: ls.shard_looped(2, blocks()), "expected a torch.nn.Module, got int: shard_looped(model, mesh)"),
        (lambda: ls.build_optimizer("adamw", blocks(), lr=0.1), "unknown optimizer 'ModuleList': known: adamw"),
        (lambda: ls.param_groups(ls.Loop(blocks(), 2), lr=0.1, roles=["hidden"]), "expected a dict of roles, got list"),
        (lambda: ls.param_groups(ls.Loop(blocks(), 2), lr=0.1, width=64), "such as width=Width(1024, base_width=256)"),
        (lambda: ls.roles_of(blocks().parameters()), "roles need names, pass the model itself"),
        (lambda: ls.LoopedTransformer({"width": 64}), "got dict: LoopedTransformer(ModelConfig(width=64))"),
        (lambda: ls.apply_branch_gain(nn.Linear(2, 2)), "expected a Loop, got Linear: give the Loop inside"),
        (lambda: ls.restore("run/final"), "got str: restore(Class.from_pretrained(folder))"),
        (lambda: ls.fold("run"), "expected a torch.nn.Module, got str"),
        (
            lambda: ls.check_parameterization(torch.ones(1, 4), blocks()),
            "expected a rule's name or a Rule, got ModuleList",
        ),
        (lambda: fit("config.toml"), "got str: load_config(path) reads one from a file"),
        (lambda: train_run("config.toml", "run"), "got str: load_config(path) reads one from a file"),
        (lambda: make_config("config.toml"), "load_config(path) reads a TOML file"),
        (lambda: load_config({"model": {}}), "make_config(values) takes values"),
        # These ran, and did something else than was meant.
        (lambda: ls.build_optimizer(ls.Loop(blocks(), 2), "adamw", lr=0.1, momentum=0.9), "adamw has no momentum"),
        (lambda: ls.build_optimizer(ls.Loop(blocks(), 2), "sgd", lr=0.1, betas=(0.9, 0.99)), "sgd has no betas"),
        (lambda: ls.build_optimizer(ls.Loop(blocks(), 2), lr=0.1, betas=0.9), "such as betas=(0.9, 0.95)"),
        (lambda: ls.param_groups(ls.Loop(blocks(), 2), lr=0.1, weight_decay=-1), "weight_decay must be a number of at"),
        (lambda: ls.ScaledUpdate(scale=-1), "scale must be a number of at least 0, got -1"),
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
        (["tune", "ok.toml", "--target", "loops=8,loops=16"], "--target names loops twice: one number for each axis"),
        (
            ["exponent", "ok.toml", "--loops", "4,8", "--target", "loops=2"],
            "the smallest N of the study, 4: --loops 2,4,8",
        ),
        # 4 times the hidden rate, N^-0.5: both ran, as a rate of 4 and as an eps that grows.
        (
            ["exponent", "ok.toml", "--outer-rate", "4"],
            "and 4 is above 1: write one such as 2^-5",
        ),
        (["exponent", "ok.toml", "--carry=-0.5"], "eps falls as N^-a, and a to carry by is from 0 to 3, got -0.5"),
        (["exponent", "ok.toml", "--carry", "sqrt,sqrt"], "--carry lists each way once"),
        (
            ["train", "--from", "ok.toml"],
            "--from takes a model beside it: --model file.py:make_model, or loopscale train",
        ),
        (["train", "tuned"], "tuned is a folder, and a config is a file: name tuned/tuned.toml"),
        (["transfer", "ok.toml"], "it takes no config; --preset and --set model.width=64 change what it trains"),
        (["transfer", "mine.py:make_model"], "a model of yours is named by --model file.py:make_model"),
        (["export", "run", "--out", "hf"], "OUT is an argument of loopscale export, not an option: leave --out out"),
        (["diagnose", "ok.toml"], "ok.toml is a config and no model: train it, and name the folder of its run"),
        (["report", "ok.toml"], "ok.toml is a file, no folder: give the folder of a study, a tuning or a run"),
        (["transfer", "--loops", "1-16"], "is not a comma-separated list of whole numbers such as 1,2,4"),
        (["data", "verify", "nowhere"], "there is no folder nowhere: make it with loopscale data prepare"),
        (["report", "nowhere"], "there is no folder nowhere: give the folder of a study, a tuning or a run"),
    ],
)
def test_a_slip_on_the_command_line_says_what_to_write(line, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {"ok.toml": "[train]\nsteps = 2\n", "mine.py": "import torch\n", "quoted.toml": '[model]\nwidth = "64"\n'}
    (tmp_path / "tuned").mkdir()
    for name, text in {**files, "tuned/tuned.toml": ""}.items():
        (tmp_path / name).write_text(text)
    assert main(line) == 2
    said = capsys.readouterr()
    assert sentence in said.err and not said.out and "Traceback" not in said.err
    assert {path.name for path in tmp_path.iterdir()} == {*files, "tuned"}
