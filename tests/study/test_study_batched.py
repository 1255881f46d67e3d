"""Trials batched: the records that processes give, for house and user models; what cannot be batched runs alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loopscale import UserError
from loopscale.cli import main
from loopscale.study import Batched, Fastest, InThisProcess, LocalProcesses, UserCode, drive
from loopscale.study.batches import graph_of, train_together
from loopscale.study.fastest import alone_seconds, stack_seconds
from loopscale.study.trial import run_trial
from loopscale.train import make_config, parse_values
from loopscale.transfer import Study, StudyPlan, run_study

BASE = {
    "model": {"width": 32, "head_dim": 16, "layers": 1},
    "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
    "train": {"steps": 6, "eval_batches": 2, "device": "cpu"},
}
RATES = (2.0**-8, 2.0**-7, 2.0**-6)
EXAMPLES = Path(__file__).parents[1] / "transfer" / "user_examples.py"
MODELS = Path(__file__).parents[1] / "train" / "stack_models.py"


def job(key, *sets, stop=(), user_code=None):
    config = (make_config if user_code is None else parse_values)(BASE, sets).model_dump(mode="json")
    extra = {"stop": [list(row) for row in stop]} if user_code is None else {"user_code": user_code.to_json()}
    return key, {"lr": config["optim"]["lr"]}, {**config, **extra}


def timeless(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def trials(folder):
    return {key: timeless(trial.model_dump()) for key, trial in Study.load(folder).trials.items()}


@pytest.mark.parametrize("reference", [InThisProcess(), pytest.param(LocalProcesses(2), marks=pytest.mark.slow)])
def test_a_study_in_stacks_keeps_the_records_of_one_in_processes(reference, tmp_path):
    plan = StudyPlan(base=make_config(BASE), rules=("looped", "none"), loops=(1, 2), lrs=RATES, seeds=2)
    said = []
    run_study(plan, tmp_path / "batched", executor=Batched(1, 4, say=said.append))
    run_study(plan, tmp_path / "alone", executor=reference)
    assert trials(tmp_path / "batched") == trials(tmp_path / "alone") and not said
    assert len(trials(tmp_path / "batched")) == 18


def test_a_trial_in_a_stack_is_stopped_lost_and_recorded_as_alone():
    lost = ["optim.lr=3e38", 'optim.optimizer="sgd"', "optim.clip=0.0", 'optim.schedule="constant"', "optim.warmup=0"]
    jobs = [
        job("whole", 'optim.optimizer="sgd"', "optim.lr=0.01"),
        job("hopeless", 'optim.optimizer="sgd"', "optim.lr=0.001", stop=[(2, 99.0), (4, 0.1)]),
        job("lost", *lost),
        job("hopeful", 'optim.optimizer="sgd"', "train.seed=3", stop=[(2, 99.0)]),
    ]
    assert len({graph_of(config)[0] for _, _, config in jobs}) == 1
    records, refusal = train_together(jobs)
    found = {record["key"]: timeless(record) for record in records}
    assert refusal is None and found == {job[0]: timeless(run_trial(*job)) for job in jobs}
    assert found["hopeless"]["stopped"] and found["hopeless"]["steps"] == 4 and found["lost"]["diverged"]


def test_what_shares_no_graph_or_cannot_be_stacked_runs_alone():
    said = []
    batched = Batched(1, 4, say=said.append)
    jobs = [
        *(job(f"a{seed}", f"train.seed={seed}", 'model.rule="none"') for seed in range(5)),
        job("wide", "model.width=64"),
        *(job(f"drawn{seed}", 'model.sampler="uniform"', f"train.seed={seed}") for seed in range(2)),
    ]
    groups = []
    while jobs:
        group = batched.pack(jobs, [])
        groups.append([key for key, _, _ in group])
        jobs = [job for job in jobs if job not in group]
    assert groups == [["a0", "a1", "a2", "a3"], ["a4"], ["wide"], ["drawn0"], ["drawn1"]]
    assert said == ["trials run alone: model.sampler = 'uniform' draws each trial's own N"]


def test_two_workers_share_the_trials_of_a_graph():
    batched = Batched(2, 8)
    jobs = [job(f"a{seed}", f"train.seed={seed}") for seed in range(5)]
    first = batched.pack(jobs, [])
    second = batched.pack([job for job in jobs if job not in first], first)
    assert [len(first), len(second)] == [3, 2]


@pytest.mark.parametrize("name,words", [("attending", None), ("counting", "its forward pass changes calls")])
def test_own_models_are_stacked_or_said_why_not(name, words):
    code = UserCode.at(f"{MODELS}:{name}")
    jobs = [job(f"{lr}", f"optim.lr={lr}", user_code=code) for lr in (0.01, 0.03)]
    assert len({graph_of(config)[0] for _, _, config in jobs}) == 1
    records, refusal = train_together(jobs)
    if words is not None:
        assert not records and refusal.limit == 1 and refusal.why == words
        return
    for record, one in zip(records, jobs, strict=True):
        alone = run_trial(*one)
        assert record["loss"] == pytest.approx(alone["loss"], abs=1e-5) and record["steps"] == alone["steps"]


def test_a_stack_that_does_not_fit_the_memory_is_halved(monkeypatch):
    def full(configs):
        raise MemoryError

    monkeypatch.setattr("loopscale.study.batches.stack_of", full)
    jobs, said = [job(f"a{seed}", f"train.seed={seed}") for seed in range(5)], []
    batched = Batched(1, 8, say=said.append)
    found = train_together(jobs)
    assert batched.records(jobs, found) == [] and found[1].limit == 2
    assert len(batched.pack(jobs, [])) == 2
    assert said == ["trials run at most 2 at once: 5 at once do not fit the memory"]


def test_sizes_that_make_no_stack_are_refused():
    with pytest.raises(UserError, match="batched trains at least 2 trials at once, got 1: use --executor local"):
        Batched(1, 1)
    with pytest.raises(UserError, match="workers must be at least 1, got 0"):
        Batched(0)
    assert (Batched(3, 5).slots, Batched(3, 5).batch) == (3, 5)


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--executor", "batch"], "unknown executor 'batch': did you mean 'batched'?"),
        (["--executor", "stacks:4"], "the executor stacks:4 is now called batched:4"),
        (["--executor", "batched:1"], "batched trains at least 2 trials at once, got 1: use --executor local"),
        (
            ["--executor", "batched:many"],
            "how many trials train at once is a whole number, got 'many': such as batched:8",
        ),
        (["--executor", "local:4"], "unknown executor 'local:4'"),
        (["--executor", "batched", "--address", "auto"], "it is of a Ray cluster, add --executor ray"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, tmp_path, capsys):
    assert main(["transfer", "--out", str(tmp_path / "s"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "s").exists()


def test_auto_measures_both_and_says_which(monkeypatch):
    config = job("a")[2]
    for ratio, kind, words in [
        (2.0, Batched, "executor auto: 4 at once in 2 process(es), 2.00 times the throughput of a trial in each of 2"),
        (0.8, LocalProcesses, "a trial in each of 2 process(es); 4 at once in 2 process(es) have 0.80 times their"),
    ]:
        monkeypatch.setattr("loopscale.study.fastest.measured", lambda *_, r=ratio: (4, (10.0, 10.0 * r)))
        said = []
        auto = Fastest(config, 2, said.append)
        drive(auto, lambda: None, said.append)
        assert not said, "nothing is measured for a study that is finished"
        assert type(auto.chosen) is kind and words in said[0] and len(said) == 1
        assert (auto.slots, auto.batch) == ((2, 4) if kind is Batched else (2, 1))
    said = []
    assert type(Fastest(job("a", "train.compile=true")[2], 2, said.append).chosen) is LocalProcesses
    assert "not batched: train.compile compiles" in said[0]


def test_a_few_steps_give_both_paces():
    config, code = job("a", "train.steps=400")[2], UserCode.at(f"{MODELS}:attending")
    for sample in (config, job("b", user_code=code)[2]):
        assert 0 < alone_seconds(sample) < 1 and 0 < stack_seconds(sample, 3) < 1
    assert "changes calls" in stack_seconds(job("c", user_code=UserCode.at(f"{MODELS}:counting"))[2], 3)
    broken = {**job("d", user_code=UserCode.at(f"{EXAMPLES}:broken"))[2]}
    assert "ZeroDivisionError: no model today" in alone_seconds(broken)


@pytest.mark.slow
def test_auto_in_a_real_study(tmp_path):
    said = []
    plan = StudyPlan(base=make_config(BASE), rules=("looped",), loops=(1,), lrs=RATES)
    run_study(plan, tmp_path / "s", executor=Fastest(job("a")[2], 2, said.append))
    assert len(trials(tmp_path / "s")) == 3 and said[0].startswith("executor auto: ")


@pytest.mark.slow
def test_the_benchmark_runs_small(tmp_path):
    out = tmp_path / "stacks.json"
    script = Path(__file__).parents[2] / "benchmarks" / "stacks.py"
    size = ["--sizes", "d = 32, T = 16", "--pairs", "1", "--walls", "0"]
    done = subprocess.run([sys.executable, script, *size, "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert set(record["rows"][0]["steps"]) == {"1", "4", "16", "64"} and record["gpu"] is None


def test_a_verification_in_stacks_needs_a_plan(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none"), "--executor", "auto", "--loops", "4"]) == 2
    assert "is no folder: name the folder that loopscale tune wrote" in capsys.readouterr().err
