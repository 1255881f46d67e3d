"""After every verdict that leaves something to do comes one line with a command that is right: parsed here, and run."""

import json
import math
import shlex
from pathlib import Path

import pytest
from test_optimum import estimate

from loopscale.cli import main
from loopscale.study import UserCode
from loopscale.train import make_config
from loopscale.transfer import Study, StudyPlan, fit_optimum
from loopscale.transfer.advice import Commands, missing_rates, needed_seeds, next_step
from loopscale.transfer.result import commands_of

HOUSE = Commands(Path("runs/my study"), (1, 4, 16), ("looped", "none"), 2, None, ("--set", 'data.path="stdlib"'))
MODEL = Commands(Path("runs/s"), (1, 4), ("looped",), 1, UserCode("model", "mine.py:make_model", "0"))
OBJECTIVE = Commands(Path("runs/s"), (1, 4), ("none",), 1, UserCode("objective", "mine.py:judge", "0"))
STILL, MOVES, OPEN = estimate(0.0, 0.1), estimate(0.3, 0.1), estimate(0.0, 0.2)


@pytest.mark.parametrize("do", [HOUSE, MODEL, OBJECTIVE])
@pytest.mark.parametrize(
    ("rule", "verdict", "slope", "regret", "rates", "command"),
    [
        ("looped", "transfers", STILL, estimate(0.0, 0.005), (), None),
        ("looped", "drifts", MOVES, estimate(0.1, 0.0), (), None),
        ("none", "drifts", MOVES, estimate(0.1, 0.0), (), None),
        ("looped", "undecided", OPEN, estimate(0.0, 0.005), (), "--seeds 4"),
        ("looped", "undecided", estimate(-0.2, 0.5), estimate(0.0, 0.005), (), "--seeds 7"),
        ("looped", "undecided", estimate(-0.149, 0.2), estimate(0.0, 0.005), (), "--loops"),
        ("looped", "undecided", estimate(0.0, 0.1), estimate(0.0, 0.2), (), "--loops"),
        ("looped", "undecided", None, None, (2.0**-6.5, 2.0**-6.25, 0.01), "--lrs '2^-6.5,2^-6.25,0.01'"),
        ("looped", "undecided", None, None, (), "--seeds 3"),
    ],
)
def test_after_a_verdict_comes_one_command_that_parses(rule, verdict, slope, regret, rates, command, do, parsed):
    told = next_step(rule, verdict, slope, regret, rates, do)
    assert "\n" not in told and (verdict == "transfers") == (told == "")
    if told:
        ((name, given),) = parsed(told)
        assert command is None or command in told
        code = do.user_code
        assert name == "scale" or code is None or given[code.kind] == code.place, "the user's code is named again"
        if rates:
            assert given["lrs"] == rates, "the same numbers, so that trials that ran are found"
        if rule == "looped" and verdict == "drifts":
            assert name == ("transfer" if do is OBJECTIVE else "exponent")


def test_the_seeds_that_are_advised_are_enough():
    assert needed_seeds(2, 2.0) == 3 and needed_seeds(3, 1.0001) == 4 and needed_seeds(3, 100.0) is None


@pytest.mark.parametrize(
    ("bottom", "diverges_above", "holds"),
    [(-2.0, 0.0, -3.5), (-12.0, 0.0, -10.5), (-3.0, -6.9, -6.75)],
)
def test_the_rates_that_are_added_reach_beyond_the_end_and_keep_those_near_the_other_optima(
    bottom, diverges_above, holds
):
    def arm(bottom):
        return {
            (2.0**k, seed): math.inf if k > diverges_above else (k - bottom) ** 2 + 0.01 * seed
            for k in range(-10, -4)
            for seed in range(2)
        }

    losses = {1: arm(-7.5), 4: arm(bottom)}
    rates = missing_rates(losses, {loops: fit_optimum(known) for loops, known in losses.items()})
    assert 2.0**holds in rates and {2.0**-8, 2.0**-7} <= set(rates)


def test_a_study_that_is_measured_anew_keeps_its_config(tmp_path, parsed):
    base = make_config({"model": {"width": 32, "head_dim": 16, "layers": 2}, "train": {"steps": 7, "device": "cpu"}})
    do = commands_of(Study(tmp_path / "s", StudyPlan(base, loops=(1, 4))))
    ((name, given),) = parsed(do.other_rule("looped"))
    assert name == "exponent" and given["loops"] == (1, 4)
    assert {"model.width=32", "model.layers=2", "train.steps=7"} <= set(given["sets"])


OBJECTIVE_FILE = """
import math

def judge(values):
    rate = math.log2(values["lr"]) + 6.2 + 0.4 * math.log2(values["loops"]) * (values["rule"] != "looped")
    return 2 + 0.05 * rate * rate + 0.01 * math.sin(values["seed"])
"""


def test_the_printed_command_goes_on_with_the_folder_and_its_plan(tmp_path, monkeypatch, capsys, inline):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OBJECTIVE_FILE)
    first = ["--rules", "looped", "--loops", "1,2", "--seeds", "1", "--set", "train.steps=7", "--out", "s"]
    assert main(["transfer", "--objective", "mine.py:judge", *first]) == 0
    advised = json.loads(Path("s/result.json").read_text())["rules"]["looped"]["next"]
    before = Path("s/trials.jsonl").read_text()
    line = shlex.split(advised[advised.index("loopscale ") :])
    assert line == ["loopscale", "transfer", "--out", "s", "--seeds", "3", "--objective", "mine.py:judge"]
    assert main(line[1:]) == 0
    assert Path("s/trials.jsonl").read_text().startswith(before)
    plan = Study.load(Path("s")).plan
    assert (plan.rules, plan.loops, plan.seeds, plan.base.train.steps) == (("looped",), (1, 2), 3, 7)
    capsys.readouterr()
    assert main(["transfer", "--out", "s"]) == 2
    assert "add --objective mine.py:judge" in capsys.readouterr().err
