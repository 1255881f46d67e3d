"""A model of the user's own that applies another eps, or other rates, than the plan says is told so, before the trials."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loopscale import Width, param_groups
from loopscale.cli import main
from loopscale.train import parse_values
from loopscale.train.training import make_task, task_optimizer

FILE = Path(__file__).parent / "loop_code.py"
TINY = {
    "data": {"path": "synthetic:copy", "context": 8, "batch_size": 2},
    "train": {"steps": 2, "eval_batches": 1, "device": "cpu"},
}


def config(loops, layers, width=8, **more):
    size = {"loops": loops, "layers": layers, "width": width, "base_layers": 2, "base_width": 8, **more}
    return parse_values({**TINY, "model": size})


HERE, THERE = config(4, 2, strength=0.5), config(8, 4, strength=0.5)


def said(name, here=HERE, there=THERE):
    sentences = make_task(here.using(f"{FILE}:{name}")).check(there)
    return [sentence for sentence in sentences if "cannot tell the role" not in sentence]


@pytest.mark.parametrize("name", ["told_all", "parts"])
def test_a_model_that_hears_the_plan_is_told_nothing(name):
    assert said(name, there=None) == [] and (name == "parts" or said(name) == [])


@pytest.mark.parametrize(
    "name,words",
    [
        ("no_base", "Loop applies eps = 0.08839 at N = 4, L = 2 where the plan says 0.125: let the factory take "
         "base_layers and pass base_layers=2 to the Loop"),
        ("no_strength", "applies eps = 0.25 at N = 4, L = 2 where the plan says 0.125: let the factory take strength"),
        ("one_visit", "applies eps = 0.5 at N = 4, L = 2 where the plan says 0.125: let the factory take loops"),
        ("unscaled_parts", "ScaledResidual applies eps = 1 at N = 4, L = 2 where the plan says 0.125: let the factory "
         "take residual_scale and pass it as scale="),
    ],
)  # fmt: skip
def test_one_that_forgets_a_part_of_it_is_told_what_to_pass(name, words):
    (sentence,) = said(name)
    assert words in sentence


def test_a_base_that_only_the_target_shows_is_told_at_the_proxy():
    """At L = 1 both are one number: what was tuned there would be sqrt(2) off at L = 2."""
    here, there = config(4, 1, base_layers=2), config(8, 2, base_layers=2)
    here, there = (c.model_copy(update={"model": c.model.model_copy(update={"base_layers": 1})}) for c in (here, there))
    assert said("no_base", here, there) == []
    here, there = config(1, 2), config(1, 2)
    assert "base_layers=2" in said("no_base", here, there)[0]


def test_the_width_that_param_groups_is_not_told_is_said_and_mends_it():
    here, there = HERE, config(8, 4, width=32, strength=0.5)
    (sentence,) = said("told_all", here, there)
    assert "give it width=ls.Width(32, base_width=8)" in sentence
    task = make_task(there.using(f"{FILE}:told_all"))
    mine = task_optimizer(task).param_groups
    theirs = param_groups(task.model, lr=there.optim.lr, width=Width(32, 8))
    assert [group["lr"] for group in mine] == [group["lr"] for group in theirs]


def test_tune_says_it_before_the_trials_and_the_plan_keeps_it(tmp_path, capsys, inline):
    (tmp_path / "small.toml").write_text(config(1, 2).to_toml())
    size = ["--target", "loops=4", "--trials", "3", "--seeds", "1", "--workers", "1", "--out", str(tmp_path / "t")]
    assert main(["tune", str(tmp_path / "small.toml"), "--model", f"{FILE}:no_base", *size]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [i for i, line in enumerate(lines) if "warning: the model's Loop applies eps" in line]
    first_trial = next(i for i, line in enumerate(lines) if line.startswith("1 trials, "))
    assert told[0] < first_trial < told[-1] and "  hidden      loop.stack.*.branch.weight" in lines
    plan = json.loads((tmp_path / "t" / "plan.json").read_text())
    (kept,) = plan["provenance"]["data"]["warnings"]
    assert "pass base_layers=2 to the Loop" in kept
    assert f"# Warning: {kept}." in (tmp_path / "t" / "tuned.toml").read_text()


@pytest.mark.slow
def test_transfer_says_it_too(tmp_path, capsys):
    sets = [f"--set={key}" for key in ("train.steps=2", "train.eval_batches=1", "model.width=8", "data.batch_size=2")]
    axes = ["--rules", "looped", "--loops", "1,2", "--lrs", "0.01,0.02,0.04", "--seeds", "1", "--workers", "1"]
    command = ["transfer", "--model", f"{FILE}:no_base", *axes, *sets, "--out", str(tmp_path / "s")]
    assert main(command) in (0, 1)
    said = " ".join(capsys.readouterr().err.split())
    assert "pass base_layers=2 to the Loop" in said
    assert f"study of {FILE}:no_base; stop it any time" in said and "demo" not in said
    assert "1 of 6 trials, " in said and "6 of 6 trials, " in said, "without a terminal, a line for each trial"
    page = (tmp_path / "s" / "report.html").read_text()
    assert "loop_code.py:no_base" in page and "preset demo" not in page
    result = json.loads((tmp_path / "s" / "result.json").read_text())
    assert len(result["provenance"]["data"]["warnings"]) == 1


def test_a_factory_that_no_rule_reaches_is_refused_before_anything_slow_is_imported():
    place = FILE.parent / "user_examples.py"
    code = (
        "import sys\nfrom loopscale.cli import main\n"
        f"assert main(['transfer', '--model', {f'{place.name}:deaf'!r}]) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ls.Loop(stack, loops, rule=rule, strength=strength, base_layers=base_layers)" in done.stderr
    assert done.stderr.index("ls.Loop") < done.stderr.index("residual_scale, for branches")


@pytest.mark.parametrize("command", ["transfer", "tune"])
def test_the_help_states_the_contract(command, capsys):
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("make_batch(split, step, seed, batch_size)", "loss(model, batch)", "roles(model)", "base_layers"):
        assert words in text
