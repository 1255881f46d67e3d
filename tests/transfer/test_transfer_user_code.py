"""Studies of the user's own models and objectives: the same executors, keys and verdicts; mistakes are one sentence."""

import json
from pathlib import Path

import pytest
import torch

from loopscale import UserError
from loopscale.cli import main
from loopscale.study import InThisProcess, LocalProcesses, UserCode, objective_values
from loopscale.train import default_loss, fingerprint, fit, parse_values
from loopscale.train.training import make_task
from loopscale.transfer import Study, StudyPlan, run_study

FILE = Path(__file__).parent / "user_examples.py"
BASE = parse_values(
    {
        "model": {"width": 17, "layers": 1},
        "data": {"batch_size": 32},
        "optim": {"lr": 0.01},
        "train": {"steps": 40, "eval_batches": 4, "device": "cpu"},
    }
)
RATES = (2.0**-9, 2.0**-7, 2.0**-5)


def place(name):
    return f"{FILE}:{name}"


def test_a_model_that_sees_no_tokens_is_studied_like_any_other(tmp_path):
    plan = StudyPlan(
        base=BASE, rules=("looped", "none"), loops=(1, 4), lrs=RATES, user_code=UserCode.at(place("make_model"))
    )
    result = run_study(plan, tmp_path / "s", executor=LocalProcesses(1))
    trials = Study.load(tmp_path / "s").trials
    assert len(trials) == 9, "at N = 1 both rules are one network for a factory that takes residual_scale alone"
    assert min(trial.loss for trial in trials.values()) < 0.9 and not any(t.diverged for t in trials.values())
    by_rule = {rule: result["rules"][rule]["points"]["4"] for rule in ("looped", "none")}
    assert by_rule["looped"] != by_rule["none"], "the rule did not reach the model"
    assert result["provenance"]["data"]["roles"]["layers.0.1.weight"] == "hidden"
    key, trial = next(iter(trials.items()))
    config = parse_values({name: part for name, part in trial.config.items() if name != "user_code"})
    assert fit(config.using(place("make_model"))).val_loss == trial.loss, "a worker and this process differ"
    assert key == Study.load(tmp_path / "s").plan.key(_cell(trial))


def _cell(trial):
    from loopscale.transfer import Arm, Cell

    at = trial.cell
    return Cell(Arm(at.rule, at.strength, at.loops), at.lr, at.seed)


def test_an_objective_is_studied_and_the_verdict_follows_its_truth(tmp_path, capsys, inline):
    out = ["--loops", "1,4,16", "--workers", "1", "--out", str(tmp_path / "s"), "--json"]
    assert main(["transfer", "--objective", place("objective"), *out]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rules"]["looped"]["verdict"] == "transfers"
    assert result["rules"]["none"]["verdict"] == "drifts"
    assert result["rules"]["none"]["slope"] == pytest.approx(-1, abs=0.01)
    assert result["rules"]["sqrt"]["slope"] == pytest.approx(-0.5, abs=0.01)


@pytest.mark.slow
def test_trials_that_raise_are_told_and_cost_nothing_else(tmp_path, capsys):
    command = ["transfer", "--objective", place("sometimes"), "--loops", "1,2", "--rules", "looped"]
    assert main([*command, "--out", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().err
    assert "trials raised and count as diverged, the first RuntimeError: out of luck" in said
    trials = Study.load(tmp_path / "s").trials.values()
    assert 0 < sum(trial.error is not None for trial in trials) < len(trials)
    assert all(trial.diverged and trial.loss is None for trial in trials if trial.error)


def test_editing_the_source_makes_other_trials(tmp_path):
    (tmp_path / "beside_mine.py").write_text("x = 1\n")
    (tmp_path / "mine_1.py").write_text("import beside_mine\ndef objective(values):\n    return 1.0\n")
    before = fingerprint(f"{tmp_path}/mine_1.py:objective")
    (tmp_path / "beside_mine.py").write_text("x = 2\n")
    assert fingerprint(f"{tmp_path}/mine_1.py:objective") != before


def test_an_objective_is_told_what_the_rule_applies():
    values = objective_values(parse_values({"model": {"loops": 8, "layers": 4, "base_layers": 1}}))
    assert values["residual_scale"] == 1 / 16 and values["multipliers"]["hidden.lr"] == 0.5


@pytest.mark.parametrize(
    "name,words",
    [
        ("missing", "has no 'missing'"),
        ("number", "is a int, not a function"),
        ("deaf", "takes none of rule, strength, residual_scale"),
        ("demanding", "needs 'secret', which is not on offer"),
        ("objective", "needs 'values', which is not on offer"),
        ("broken", "raised at loops=4: ZeroDivisionError: no model today"),
        ("no_module", "returned a int"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_sentence_and_no_folder(name, words, tmp_path, capsys):
    out = tmp_path / "s"
    arguments = ["transfer", "--model", place(name), "--out", str(out), "--loops", "4,2", "--set", "model.loops=4"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("arguments", [["transfer", "--rules", "none,gpt2-init"], ["exponent", "--carry", "gpt2-init"]])
def test_an_initialisation_that_the_users_model_does_itself_is_refused(arguments, tmp_path, capsys):
    out = tmp_path / "s"
    assert main([*arguments, "--model", place("make_model"), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "rule 'gpt2-init' is an initialisation" in said and said.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("command", [["transfer"], ["tune", "small.toml", "--target", "loops=4", "--tune", "lr"]])
def test_a_model_that_ignores_its_scale_is_refused_before_a_folder_is_made(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text("[model]\nwidth = 8\n")
    named = ["--model", place("ignores"), "--set", "train.precision=fp32", "--out", "s"]
    assert main([*command, *named]) == 2
    said = capsys.readouterr().err
    assert "ignores its strength" in said and said.count("\n") == 1 and not (tmp_path / "s").exists()


def test_branches_that_start_at_zero_do_not_pass_for_a_model_that_ignores_its_scale():
    """Loss is the same at any eps there; the gradients are not."""
    code, config = UserCode.at(place("starts_at_zero"), "model"), parse_values({"model": {"width": 8}})
    code.refuse_deaf(*(config.replaced("model", strength=strength) for strength in (1.0, 0.125)))


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--model", "nowhere.py:f"], "there is no file nowhere.py"),
        (["--model", "nowhere"], "names no function"),
        (["--model", "no_such_package:f"], "no module named 'no_such_package'"),
        (["--model", "a.py:f", "--objective", "b.py:g"], "not both"),
    ],
)
def test_a_place_that_is_none_is_one_sentence(arguments, words, tmp_path, capsys):
    assert main(["transfer", *arguments, "--out", str(tmp_path / "s")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_an_objective_that_never_works_is_an_error_and_its_records_stay(tmp_path):
    plan = StudyPlan(
        base=BASE, rules=("looped",), loops=(1,), lrs=RATES, user_code=UserCode.at(place("always"), "objective")
    )
    with pytest.raises(UserError, match="all 3 trials raised, the first RuntimeError: never works"):
        run_study(plan, tmp_path / "s", executor=InThisProcess())
    assert len((tmp_path / "s" / "trials.jsonl").read_text().splitlines()) == 3


def test_the_loss_is_found_in_what_models_return():
    class Returns(torch.nn.Module):
        def __init__(self, output):
            super().__init__()
            self.output = output

        def forward(self, x):
            return self.output

    logits, targets = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long)
    pair = (torch.zeros(2, 3), targets)
    assert default_loss(Returns(logits), pair).item() == pytest.approx(1.6094, abs=1e-3)
    assert default_loss(Returns((logits, torch.tensor(4.0))), pair).item() == 4.0
    assert default_loss(Returns(torch.tensor(3.0)), torch.zeros(2)).item() == 3.0
    with pytest.raises(UserError, match=r"the model gave \[2, 3\]: return a scalar loss"):
        default_loss(Returns(torch.zeros(2, 3)), (torch.zeros(2, 3), torch.zeros(2, 4)))


def test_stated_roles_are_used_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "stated_roles.py").write_text(
        "from torch import nn\n"
        "def make_model(loops, residual_scale):\n    return nn.Linear(2, 2)\n"
        "def make_batch(split, step, seed, batch_size):\n    import torch\n    return torch.zeros(1, 2)\n"
        "def loss(model, batch):\n    return model(batch).sum()\n"
        "def roles(model):\n    return {'weight': 'readout'}\n"
    )
    config = BASE.using(f"{tmp_path}/stated_roles.py:make_model")
    with pytest.raises(UserError, match=r"no role for parameter 'bias': .* or call attach"):
        make_task(config)
    code = (tmp_path / "stated_roles.py").read_text().replace("'readout'}", "'readout', 'bias': 'outer_gain'}")
    (tmp_path / "whole_roles.py").write_text(code)
    task = make_task(BASE.using(f"{tmp_path}/whole_roles.py:make_model"))
    assert task.roles["weight"].value == "readout" and not task.origin["model"]["roles_inferred"]


def test_a_role_that_is_guessed_is_a_warning_before_the_trials(tmp_path):
    (tmp_path / "guessed.py").write_text(
        "from torch import nn\n"
        "def make_model(loops, residual_scale):\n"
        "    return Net()\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.tok, self.pool, self.W = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)\n"
        "    def forward(self, x):\n        return self.W(self.pool(self.tok(x)))\n"
        "def make_batch(split, step, seed, batch_size):\n"
        "    import torch\n    return torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)\n"
    )
    task = make_task(BASE.using(f"{tmp_path}/guessed.py:make_model"))
    roles = {name: task.roles[f"{name}.weight"].value for name in ("tok", "pool", "W")}
    assert roles == {"tok": "embedding", "pool": "hidden", "W": "readout"}
    assert task.check(None) == [
        "cannot tell the role of 'pool.weight', taken as hidden: state it with roles(model) beside the factory, such as "
        "{'pool.weight': 'hidden'}, or call attach(model, loops=loops) in the factory, if it maps into or out of the stream"
    ]


def test_one_number_of_loops_is_no_study(tmp_path, capsys):
    from loopscale.cli import main

    for given in ("4", "4,4"):
        assert main(["transfer", "--loops", given, "--out", str(tmp_path / "study")]) == 2
        told = capsys.readouterr().err
        assert f"a study compares numbers of loops, and --loops {given} is one: --loops 1,4" in told
    assert not (tmp_path / "study").exists()
