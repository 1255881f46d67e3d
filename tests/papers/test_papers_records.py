"""The paper's records, the texts drawn from them, and the studies' arithmetic."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "papers" / "residual_scaling"
RECORDS = sorted((ROOT / "records" / "paper").glob("[0-9][0-9].json"))


@pytest.fixture(scope="module")
def paper():
    """The folder's modules, importable as its command sees them."""
    sys.path.insert(0, str(PAPER))
    import draw
    import outcome
    import render
    import studies

    yield {"draw": draw, "outcome": outcome, "render": render, "studies": studies}
    sys.path.remove(str(PAPER))


def test_every_prediction_has_a_study(paper):
    assert sorted(paper["studies"].PREDICTIONS) == list(range(1, 23))


def test_texts_are_those_of_the_records(paper):
    render = paper["render"]
    assert len(render.documents()) >= 2
    for page in render.documents():
        assert render.rendered(page.read_text()) == page.read_text(), f"{page.name}: run make paper"
    assert json.loads(render.VERDICTS.read_text()) == render.verdicts()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_figures_are_those_of_the_records(path, paper):
    record = json.loads(path.read_text())
    figure = PAPER / "figures" / f"{path.stem}.svg"
    assert figure.read_text() == paper["draw"].svg(record)
    assert "nan" not in figure.read_text().lower()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_verdict_follows_from_its_numbers(path, paper):
    record = json.loads(path.read_text())
    held = []
    for m in record["measured"]:
        low, high = (e if e is not None else s * float("inf") for e, s in zip(m["limits"], (-1, 1), strict=True))
        held.append(paper["outcome"].Measured(m["what"], m["value"], tuple(m["interval"]), m["n"], (low, high)).holds)
        assert held[-1] == m["holds"], m["what"]
        assert m["n"] >= 3 and m["interval"][0] <= m["value"] <= m["interval"][1]
    expected = "refuted" if False in held else "confirmed" if all(held) else "undecided"
    assert record["verdict"] == expected
    origin = record["provenance"]
    assert {"torch", "python", "commit", "hardware", "date"} <= set(origin)
    assert paper["render"].processor_seconds(record) >= 0


def test_the_verdict_can_come_out_false(paper):
    Measured, about = paper["outcome"].Measured, paper["outcome"].about
    assert Measured("slope", 0.9, (0.8, 1.0), 5, about(0, 0.15)).holds is False
    assert Measured("slope", 0.1, (0.0, 0.2), 5, about(0, 0.15)).holds is None
    assert Measured("slope", 0.1, (0.05, 0.14), 5, about(0, 0.15)).holds is True


def test_slope_of_a_power_law(paper):
    slope, over_seeds = paper["outcome"].slope, paper["outcome"].over_seeds
    assert slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    measured = over_seeds("", [1.0, 2.0, 3.0], (0, 5))
    assert measured.value == 2 and measured.interval[1] - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [["23"], ["seven"], ["7", "rule"]],
)
def test_a_wrong_number_is_a_mistake(paper, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["residual_scaling", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PAPER), run_name="__main__")
    assert ended.value.code == 2


def test_a_missing_record_says_which_command_makes_it(paper, monkeypatch, tmp_path):
    import recorded

    monkeypatch.setattr(recorded, "RECORD", tmp_path / "transfer_laptop.json")
    recorded.laptop.cache_clear()
    with pytest.raises(ValueError, match="loopscale transfer --preset laptop"):
        recorded.laptop()
    recorded.laptop.cache_clear()
    assert "`python papers/residual_scaling 3` makes the record" in paper["render"].table({})


def test_a_cheap_study_gives_its_record_again(paper):
    """Prediction 21 anew: the same numbers as in the record, to the precision of another processor."""
    again = paper["studies"].PREDICTIONS[21]().to_json()
    record = json.loads((ROOT / "records" / "paper" / "21.json").read_text())
    assert again["verdict"] == record["verdict"]
    for new, old in zip(again["measured"], record["measured"], strict=True):
        assert new["value"] == pytest.approx(old["value"], abs=0.02)


CONFIGS = sorted((PAPER / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_of_the_papers_size_parses_and_counts(path, paper):
    import tomllib

    import plan
    import torch

    import loopscale as ls
    from loopscale.train import load_config

    config = load_config(path, ["model.loops=4"])
    with torch.device("meta"):
        model = ls.LoopedTransformer(config.network(vocab_size=config.data.vocab_size))
    counted = sum(p.numel() for p in model.parameters())
    assert counted == pytest.approx(int(path.stem[:-1]) * 1e6, rel=0.02)
    assert counted == pytest.approx(sum(plan.parameters(tomllib.loads(path.read_text()))), rel=0.001)


def test_a_config_of_the_papers_size_trains_scaled_down(tmp_path):
    from loopscale.cli import main

    text = (PAPER / "configs" / "README.md").read_text()
    command = next(part for part in text.split("```") if "synthetic:copy" in part).replace("\\\n", " ").split()
    assert command[:2] == ["loopscale", "train"]
    assert main(["train", str(ROOT / command[2]), *command[3:], "--out", str(tmp_path / "run")]) == 0


def column(name, key, words):
    """The interval, or number, in the column of a table's record whose name has these words, by the rows' first cells."""
    rows = json.loads((ROOT / "records" / "paper" / f"{name}.json").read_text())["table"]
    head = next(head for head in rows[0] if words in head)
    return {row[key]: [float(x) for x in re.findall(r"[-+]?\d+\.\d+", row[head])] for row in rows}


def test_what_the_page_says_of_the_rules_is_in_their_record():
    regret, ahead = column("rules", "rule", "regret"), column("rules", "rule", "minus `looped`")
    small, carried = column("rules", "rule", "loss at N = 2"), column("rules", "rule", "carried")
    outer = "`looped`, embedding and readout at 4 times the rate"
    gates = (
        "learned diagonal, from 0.1 (LayerScale)",
        "learned scalar, from 0 (ReZero)",
        "learned scalar a visit, from 1/N",
    )
    assert min(small, key=lambda rule: small[rule][0]) == min(carried, key=lambda rule: carried[rule][0]) == outer
    assert regret[outer][0] < 0.01 and ahead[outer][2] < 0 and ahead["`depth-mup`"][2] < 0
    assert sorted(regret, key=lambda rule: -regret[rule][0])[:2] == ["`deepnorm`", "`none`"]
    assert regret["`sqrt`"][0] < regret["`looped`"][0] and regret["`looped`"][1] > 0
    assert all(ahead[gate][0] > 0 for gate in gates) and all(ahead[gate][1] > 0 for gate in gates[:2])
    for rule in ("`deeploop`", "`deepnorm`"):
        assert small[rule][0] < small["`looped`"][0] and carried[rule][0] > carried["`looped`"][0]


def test_what_the_page_says_of_loops_is_in_their_record():
    rows = json.loads((ROOT / "records" / "paper" / "untied.json").read_text())["table"]
    head = next(head for head in rows[0] if "minus the loop" in head)
    gaps = {(row["data"].split()[0], row["network"]): re.findall(r"[-+]?\d+\.\d+", row[head]) for row in rows}
    once = {task: [float(x) for x in gaps[task, "1 layer, once"]] for task, _ in gaps}
    distinct = {task: [float(x) for x in gaps[task, "8 layers, once"]] for task, _ in gaps}
    assert once["bytes"][1] > 0 and once["sorting"][1] > 0, "at equal weights loops pay"
    assert once["addition"][0] > 0 > once["addition"][1]
    assert distinct["bytes"][2] < 0 and all(gap[0] <= 0 for gap in distinct.values())
    assert once["one"][1] < 0 < once["one"][2] and distinct["one"][1] < 0 < distinct["one"][2], "walks: nothing follows"
