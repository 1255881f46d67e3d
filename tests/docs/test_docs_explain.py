"""`loopscale explain` knows every prediction, finding, rule, word and role, and every word that a diagnosis prints."""

import ast
import json
from pathlib import Path

import pytest
import torch

import loopscale as ls
from loopscale.cli import main
from loopscale.errors import UserError
from loopscale.parameterization import RULES, Role
from loopscale.teaching import entries, explain

ROOT = Path(__file__).parents[2]


def codes():
    """The first argument of every `finding(...)` in the diagnosis."""
    found = set()
    for path in (ROOT / "src" / "loopscale" / "diagnosis").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "finding" and node.args:
                if isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
    return found


def test_predictions_are_22_in_order():
    numbers = [entry.number for entry in entries() if entry.kind == "prediction"]
    assert numbers == list(range(1, 23))


def test_every_finding_is_explained_and_no_other():
    told = {entry.name for entry in entries() if entry.kind == "finding"}
    assert codes() == told, "src/loopscale/findings.py has a row for what the diagnosis can find, and for nothing else"


def test_every_rule_is_explained():
    assert [entry.name for entry in entries() if entry.kind == "rule"] == list(RULES)


def test_names_are_one_each():
    names = [entry.name for entry in entries()]
    assert len(set(names)) == len(names)


def test_figures_and_pages_exist():
    titles = {path.read_text().partition("\n# ")[2].partition("\n")[0] for path in (ROOT / "docs").glob("learn/*.md")}
    titles |= {path.read_text().partition("\n")[0].removeprefix("# ") for path in (ROOT / "docs").glob("**/*.md")}
    for entry in entries():
        assert entry.page in titles, entry.name
        if entry.result is not None or entry.kind != "prediction":
            assert entry.figure is None or (ROOT / entry.figure).exists(), f"{entry.name}: {entry.figure}"


def test_what_a_diagnosis_prints_is_explained():
    """Every label of its lines, and every field of its JSON."""
    model = ls.LoopedTransformer(ls.ModelConfig(width=32, layers=1, loops=8, rule="none"))
    found = ls.diagnose(model, torch.randint(0, 256, (2, 16)))
    labels = {line[:10].strip() for line in found.text().splitlines() if line[9:10] == " " and line[:1].isalpha()}
    assert {"loop", "size", "growth", "over N", "scale", "aligned", "loop map", "one step"} <= labels
    for word in ({*labels, "seen", "cause", "remedy", *found.to_json()} - {"schema"}) - {found.verdict[:10].strip()}:
        assert explain(word).title, word


@pytest.mark.parametrize(
    "word", [*Role, "kappa", "N", "lambda", "m_L", "regret", "coda", "residual scale", "seed noise"]
)
def test_roles_words_and_symbols_are_explained(word, capsys):
    assert main(["explain", str(getattr(word, "value", word))]) == 0
    assert "(of the documentation)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *((word, word) for word in ("core", "coda", "transfers", "drifts", "octave", "eta", "healthy", "nats")),
        *(("not bracketed", "not-bracketed"), ("m_d", "m-d"), ("stands still", "transfers")),
    ],
)
def test_what_a_study_prints_is_explained(word, name):
    assert explain(word).name == name


@pytest.mark.parametrize("page", ["reference/glossary.md", "reference/findings.md", "diagnosis.md"])
def test_the_pages_are_drawn_from_the_same_source(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "papers" / "residual_scaling")
    import render

    text = (ROOT / "docs" / page).read_text()
    assert render.rendered(text) == text, "python papers/residual_scaling/render.py writes it"


def test_installed_words_name_pages_not_paths():
    for entry in entries():
        told = " ".join(filter(None, (entry.idea, entry.use, entry.source, entry.title, entry.page)))
        assert ".md" not in told and "docs/" not in told, entry.name


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
    [
        ("loped", "did you mean 'looped'?"),
        ("unscaled-residul", "did you mean 'unscaled-residual'?"),
        ("unscaled", "did you mean 'unscaled-path' or 'unscaled-residual' or 'unscaled-injection'?"),
        ("injected", "did you mean 'injection'?"),
        ("23", "1 to 22"),
    ],
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
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(entries())
    assert {role.value for role in Role} == {line[11:].split()[0] for line in lines if "role" in line[:11]}


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("loss gets worse with more loops", "worse-with-more-loops"),
        ("my loss becomes NaN after 100 steps", "diverges"),
        ("I have to retune the learning rate at every N", "rate-moves"),
        ("gradients explode", "gradients"),
        ("from_pretrained loses the loop", "loaded-is-another"),
        ("all groups have the same learning rate in Trainer", "one-rate-for-all"),
        ("why is the verdict undecided?", "undecided-verdict"),
        ("CUDA out of memory", "out-of-memory"),
        ("bf16 is worse than fp32", "bf16"),
    ],
)
def test_a_symptom_in_words_leads_to_findings_and_a_command(asked, name):
    entry = explain(asked)
    assert entry.name == name and entry.use and f"run          {entry.use}"[:40] in entry.text()


def test_symptoms_name_findings_that_exist():
    told = {entry.name for entry in entries() if entry.kind == "finding"}
    assert all(set(entry.findings) <= told for entry in entries())


def test_commands_and_functions_are_known():
    from loopscale.cli import COMMANDS, group

    listed = group.list_commands(None)
    assert {f"loopscale {name}" for name in listed} == {entry.name for entry in entries() if entry.kind == "command"}
    assert set(listed) <= set(COMMANDS)
    told = {entry.name.removeprefix("ls.") for entry in entries() if entry.kind == "function"}
    assert set(ls.__all__) - {"RULES", "UserError"} == told
    assert explain("convert").name == "ls.convert" and explain("loopscale convert").kind == "command"
    assert explain("tune").name == "loopscale tune" and "start=None, stop=None" in explain("ls.convert").formula


def test_every_key_of_a_config_has_a_meaning(capsys):
    from loopscale.teaching import key_rows
    from loopscale.train import TrainConfig

    sections = TrainConfig.model_fields.items()
    keys = [f"{name}.{key}" for name, section in sections for key in section.annotation.model_fields]
    assert [row["name"] for row in key_rows()] == keys
    assert explain("train.recompute").kind == "key" and explain("warmup").name == "optim.warmup"
    assert main(["train", "--keys"]) == 0
    text = capsys.readouterr().out
    assert "loops = 4 " in text and "[optim]" in text


def test_what_train_keys_prints_is_a_config(capsys, tmp_path):
    from loopscale.train import TrainConfig, load_config

    main(["train", "--keys"])
    place = tmp_path / "all.toml"
    place.write_text(capsys.readouterr().out)
    assert load_config(place) == TrainConfig()
