"""A missing, damaged, unfinished or foreign folder: one sentence with the fix, and nothing half-written."""

from __future__ import annotations

import json
import shutil

import pytest
from made_study import write_run

from loopscale.errors import UserError
from loopscale.report import write_report, write_run_report


def set_key(path, keys, value):
    record = json.loads(path.read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(record))


DAMAGES = {
    "cut": lambda p: p.write_text(p.read_text()[:200]),
    "empty": lambda p: p.write_text(""),
    "binary": lambda p: p.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda p: p.write_text("[]"),
    "deep": lambda p: p.write_text("[" * 100_000),
    "older schema": lambda p: set_key(p, ["schema"], 0),
    "no schema": lambda p: set_key(p, ["schema"], None),
    "newer schema": lambda p: set_key(p, ["schema"], 99),
    "no rule": lambda p: set_key(p, ["rules"], {}),
    "rules a list": lambda p: set_key(p, ["rules"], [1]),
    "no loops": lambda p: set_key(p, ["loops"], []),
    "negative rate": lambda p: set_key(p, ["rules", "none", "optima", "1", "lr"], -1.0),
    "loops zero": lambda p: set_key(p, ["rules", "none", "points"], {"0": []}),
    "a NaN": lambda p: set_key(p, ["rules", "none", "slope"], float("nan")),
    "text for a number": lambda p: set_key(p, ["rules", "none", "regret"], "much"),
}


def is_one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and ": " in text


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_one_sentence_and_writes_nothing(copied, damage):
    DAMAGES[damage](copied / "result.json")
    before = sorted(copied.rglob("*"))
    with pytest.raises(UserError, match=r"result\.json") as error:
        write_report(copied)
    is_one_sentence(error)
    assert sorted(copied.rglob("*")) == before


def test_messages_name_the_state_and_the_fix(copied, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        write_report(tmp_path / "absent")
    trial = next((copied / "trials").glob("*.json"))
    text = trial.read_text()
    trial.write_text(text[:50])
    with pytest.raises(UserError, match=f"{trial.name} is damaged .* delete it"):
        write_report(copied)
    trial.write_text(text)
    (copied / "result.json").unlink()
    with pytest.raises(UserError, match="has no result yet: run `loopscale transfer` again"):
        write_report(copied)
    (copied / "study.json").unlink()
    with pytest.raises(UserError, match=r"holds no result\.json: give the folder"):
        write_report(copied)


def test_a_failing_drawing_leaves_no_file(copied, monkeypatch):
    def broken(*_):
        raise UserError("the drawing failed: try again")

    monkeypatch.setattr("loopscale.report.figures.stream_over_visits", broken)
    before = sorted(copied.rglob("*"))
    with pytest.raises(UserError):
        write_report(copied)
    assert sorted(copied.rglob("*")) == before


def test_without_trials_the_page_says_what_is_left_out(copied):
    shutil.rmtree(copied / "trials")
    text = write_report(copied).read_text()
    assert "figures drawn from single trials are left out" in text
    assert not (copied / "figures" / "stream-over-visits.svg").exists()


def test_a_page_is_not_drawn_from_fewer_trials_than_its_result(copied):
    told = sum(1 for _ in (copied / "trials").glob("*.json"))
    set_key(copied / "result.json", ["provenance", "trials"], told)
    write_report(copied)
    next((copied / "trials").glob("*.json")).unlink()
    with pytest.raises(
        UserError, match=rf"holds {told - 1} of the {told} trials of the result: run `loopscale"
    ) as error:
        write_report(copied)
    is_one_sentence(error)


def test_a_rule_that_always_diverged_is_still_drawn(copied):
    path = copied / "result.json"
    for key in ("slope", "slope_interval", "regret", "regret_interval", "strength"):
        set_key(path, ["rules", "none", key], None)
    set_key(path, ["rules", "none", "optima"], {})
    lost = [{"lr": 0.01, "loss": None, "losses": [None, None]}]
    set_key(path, ["rules", "none", "points"], {"1": lost, "16": lost})
    assert "n/a" in write_report(copied).read_text()


def test_a_damaged_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        write_run_report(tmp_path / "absent")
    run = write_run(tmp_path / "run", steps=20)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text()
    for damaged, message in (
        ("", "holds no step yet"),
        ("{\n" + lines, "at line 1 is damaged"),
        ("7\n" + lines, "line 1"),
    ):
        metrics.write_text(damaged)
        with pytest.raises(UserError, match=message) as error:
            write_run_report(run)
        is_one_sentence(error)
    metrics.write_text(lines)
    (run / "config.toml").write_text("= 1")
    with pytest.raises(UserError, match="not valid TOML"):
        write_run_report(run)
    assert not (run / "report.html").exists()


def test_a_run_that_was_killed_while_writing_is_drawn(tmp_path):
    run = write_run(tmp_path / "run", steps=20)
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 21, "lo')
    assert "after 20 steps" in write_run_report(run).read_text()
