"""`loopscale explain` knows every prediction, every finding the diagnosis can make, and every rule."""

import ast
import json
from pathlib import Path

import pytest

from loopscale.cli import main
from loopscale.errors import UserError
from loopscale.parameterization import RULES
from loopscale.teaching import entries, explain

ROOT = Path(__file__).parents[2]


def codes() -> set[str]:
    """The first argument of every `Finding(...)` in the diagnosis."""
    found = set()
    for path in (ROOT / "src" / "loopscale" / "diagnosis").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" and node.args:
                if isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
    return found


def test_predictions_are_22_in_order():
    numbers = [entry.number for entry in entries() if entry.kind == "prediction"]
    assert numbers == list(range(1, 23))


def test_every_finding_is_explained_and_no_other():
    told = {entry.name for entry in entries() if entry.kind == "finding"}
    assert codes() == told, "src/loopscale/teaching/findings.toml must explain what the diagnosis can find"


def test_every_rule_is_explained():
    assert [entry.name for entry in entries() if entry.kind == "rule"] == list(RULES)


def test_names_are_one_each():
    names = [entry.name for entry in entries()]
    assert len(set(names)) == len(names)


def test_figures_and_pages_exist():
    for entry in entries():
        if entry.result is not None or entry.kind != "prediction":
            for path in (entry.figure, entry.page):
                assert path is None or (ROOT / path).exists(), f"{entry.name}: {path}"


@pytest.mark.parametrize("words", [["7"], ["prediction", "7"], ["P7"], ["one-step-change"], ["one_step_change"]])
def test_a_prediction_by_number_or_name(words, capsys):
    assert main(["explain", *words]) == 0
    assert capsys.readouterr().out.startswith("prediction 7: one-step-change\n")


def test_json_has_idea_formula_source_figure(capsys):
    assert main(["explain", "looped", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "rule" and "N^-1" in said["formula"] and said["source"] == "arXiv:2606.18524"
    assert said["figure"] and said["idea"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [("loped", "did you mean 'looped'?"), ("unscaled-residul", "did you mean 'unscaled-residual'?"), ("23", "1 to 22")],
)
def test_an_unknown_word_names_the_nearest(word, hint, capsys):
    assert main(["explain", word]) == 2
    said = capsys.readouterr()
    assert hint in said.err and said.out == "" and said.err.count("\n") == 1


@pytest.mark.parametrize("word", ["", "0", "p", "prediction", "--", "<script>", "p0", "7.5"])
def test_odd_words_are_mistakes_not_crashes(word):
    with pytest.raises(UserError):
        explain(word)


def test_without_a_word_everything_is_listed(capsys):
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(entries())
