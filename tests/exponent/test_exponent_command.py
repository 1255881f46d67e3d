"""`loopscale exponent` as a person uses it: real trainings, a user's model, mistakes, a killed process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopscale.cli import main
from loopscale.exponent import ExponentPlan, ExponentStudy, run_exponent
from loopscale.records import Journal
from loopscale.report import ExponentPage, write_exponent_report
from loopscale.study import InThisProcess, UserCode

TINY = [
    "--set", "model.width=16", "--set", "model.head_dim=8", "--set", "data.context=8", "--set", "data.batch_size=2",
    "--set", "train.steps=3", "--set", "train.eval_batches=1", "--outer-rate", "0.05", "--seeds", "1", "--fresh", "1",
    "--carry", "looped,sqrt", "--loops", "1,2",
]  # fmt: skip

MODEL = """
import torch
import loopscale as ls

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.linear = torch.nn.LayerNorm(width), torch.nn.Linear(width, width)

    def forward(self, x):
        return self.linear(self.norm(x)).tanh()

class Model(torch.nn.Module):
    def __init__(self, loops, width, scale):
        super().__init__()
        self.loops, self.scale = loops, scale
        self.embed, self.block, self.head = torch.nn.Embedding(256, width), Block(width), torch.nn.Linear(width, 256)

    def forward(self, tokens):
        x = self.embed(tokens)
        for _ in range(self.loops):
            x = x + self.scale * self.block(x)
        return self.head(x)

def make_model(loops, width=8, residual_scale=1.0):
    return Model(loops, width, residual_scale)

def deaf(loops, width=8, residual_scale=1.0):
    return Model(loops, width, 0.5)

def roles(model):
    kinds = {"embed": "embedding", "head": "readout", "block.linear": "hidden", "block.norm": "gain"}
    kinds |= {"head.bias": "outer_gain", "block.linear.bias": "gain"}
    longest = sorted(kinds, key=len, reverse=True)
    return {name: next(kinds[part] for part in longest if name.startswith(part)) for name, _ in model.named_parameters()}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    return tmp_path


def user_plan(factory="make_model", **more):
    from planted import base

    code = UserCode.at(f"mine.py:{factory}", "model")
    return ExponentPlan(
        base(width=8), loops=(1, 2), seeds=1, fresh=1, outer_rate=0.05, carry=("looped",), user_code=code, **more
    )


def test_a_users_model_is_measured_with_its_page_and_the_folder_reads_back(here):
    plan = user_plan()
    result = run_exponent(plan, here / "study", executor=InThisProcess(), page=ExponentPage)
    assert len(result.valleys) == 2 and all(valley.points for valley in result.valleys)
    assert result.user_code == "mine.py:make_model"
    page = write_exponent_report(here / "study").read_text()
    assert "How fast must eps fall" in page and "mine.py:make_model" in page
    assert (here / "study" / "figures" / "exponent.svg").exists()
    assert ExponentStudy.load(here / "study").next_job() is None


def test_a_model_that_ignores_its_strength_is_refused_before_a_folder_is_made(here, capsys):
    assert main(["exponent", "--model", "mine.py:deaf", *TINY, "--out", "study"]) == 2
    said = capsys.readouterr().err.strip()
    assert "ignores its strength" in said and said.count("\n") == 0
    assert not Path("study").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--loops", "4"], "--loops 2,4,8"),
        (["--loops", "2,4", "--target", "loops=64"], "--loops 2,4,16"),
        (["--target", "width=3"], "--target loops=64"),
        (["--lrs", "fast"], "rates such as 2^-6"),
        (["--carry", "deepnorm"], "cannot carry by 'deepnorm'"),
        (["--gpus", "2", "--executor", "slurm"], "--slurm gres=gpu:1"),
        (["missing.toml"], "cannot read"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_fix(here, capsys, arguments, says):
    assert main(["exponent", *arguments, "--out", "study"]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said and not Path("study").exists()


@pytest.mark.slow
def test_a_killed_study_goes_on_and_prints_what_an_uninterrupted_one_prints(here):
    command = [sys.executable, "-m", "loopscale", "exponent", *TINY, "--workers", "1", "--json"]
    process = subprocess.Popen([*command, "--out", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = here / "killed" / "trials.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = set(Journal(here / "killed").trials)
    results = []
    for folder in ("killed", "whole"):
        done = subprocess.run([*command, "--out", folder], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
    assert before <= set(Journal(here / "killed").trials) == set(Journal(here / "whole").trials)
    for result in results:
        result.pop("provenance")
        result["next"] = result["next"].replace("killed", "whole")  # the command names its folder
    assert results[0] == results[1]
