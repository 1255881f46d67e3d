"""A user's rule travels by its numbers: as text in configs, keys and records, read back by anyone without its file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loopscale import RULES, Depth, Rule, UserError, residual_scale
from loopscale.cli import main
from loopscale.parameterization import get_rule, spell
from loopscale.train import generate, load_config, make_config, open_run
from loopscale.transfer import Arm, Cell, StudyPlan

CODE = 'import loopscale\nRULE = loopscale.Rule("mine", "three quarters", "me", loops_exponent=0.75)\nOTHER = 3\n'
TEXT = "mine(loops_exponent=0.75)"


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return f"{tmp_path / 'mine.py'}:RULE"


@pytest.mark.parametrize("name", RULES)
def test_every_rule_of_the_table_is_read_back_from_its_numbers(name: str) -> None:
    rule = replace(RULES[name], name="mine")
    again = get_rule(spell(rule))
    assert replace(again, name="mine", summary=rule.summary, source=rule.source) == rule
    assert get_rule(again.name) == again, "the name is the whole rule"


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("mine(loops=1)", r"rule 'mine' has no field 'loops': did you mean 'loops_exponent'\? known: .*loops_exponent"),
        ("mine(loops_exponent='a')", "has loops_exponent = 'a': it must be a number"),
        ("mine(loops_exponent=1e999)", "it must be a number"),
        ("mine(norm='none')", "it must be 'pre' or 'post'"),
        ("mine(loops_exponent=__import__('os').getpid())", "cannot be read: write it like"),
        ("mine(1)", "cannot be read"),
        ("mine.py:RULE", "names a file, which runs only where the command line names it: --rule mine.py:RULE"),
        ("minee", "unknown rule 'minee'"),
    ],
)
def test_what_is_no_rule_is_a_sentence(rule: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        get_rule(rule)


def test_a_rule_with_code_of_its_own_is_refused() -> None:
    class Mine(Rule):
        pass

    with pytest.raises(UserError, match=r"make it a .*Rule, which is numbers alone"):
        spell(Mine("mine", "", ""))
    with pytest.raises(UserError, match="the name of a rule is a word"):
        spell(Rule("my rule", "", ""))


def test_scale_prints_it_with_its_own_reasons(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--loops", "16", "--layers", "2", "--rule", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["residual_scale"] == residual_scale(Depth(16, 2), rule=TEXT) == 0.125
    assert main(["scale", "--loops", "16", "--layers", "2", "--rule", place]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mine: three quarters\n") and "[me]" in printed
    assert main(["scale", "--loops", "2", "--layers", "1", "--rule", place.replace("RULE", "OTHER")]) == 2
    assert main(["scale", "--loops", "2", "--layers", "1", "--rule", place.replace("RULE", "RUEL")]) == 2


def test_a_trial_is_keyed_by_the_rules_numbers() -> None:
    def key(rule: str) -> str:
        plan = StudyPlan(base=make_config({}), rules=(rule,), loops=(1, 4), lrs=(0.1, 0.2, 0.3))
        return plan.key(Cell(Arm(rule, 1.0, 4), 0.1, 0))

    assert key(TEXT) != key("mine(loops_exponent=0.5)")


def test_a_run_keeps_the_numbers_and_needs_the_file_no_more(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"model.width": 32, "model.head_dim": 16, "model.loops": 4, "train.steps": 2, "data.context": 16}
    sets |= {"data.path": '"synthetic:copy"', "train.device": '"cpu"'}
    (tmp_path / "c.toml").write_text("")
    command = ["train", str(tmp_path / "c.toml"), "--rule", place, "--out", str(tmp_path / "run")]
    assert main([*command, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]) == 0
    (tmp_path / "mine.py").unlink()
    assert load_config(tmp_path / "run/config.toml").model.rule == TEXT
    assert generate(open_run(tmp_path / "run").path, "ab", 2).startswith("ab")
    assert main(["train", "--resume", str(tmp_path / "run"), "--set", "train.steps=3"]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--rule", "sqrt"]) == 2
    assert "it takes no --from, --init-from, --rule or --out" in " ".join(capsys.readouterr().err.split())
