"""Trials in stacks: the records that processes give, for house and own models; what cannot be stacked runs alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loopscale import UserError
from loopscale.cli import main
from loopscale.study import Fastest, LocalProcesses, Own, Stacks
from loopscale.study.fastest import alone_seconds, stack_seconds
from loopscale.study.stacks import graph_of, train_together
from loopscale.study.trial import run_trial
from loopscale.train import make_config, parse_values
from loopscale.transfer import Study, StudyPlan, run_study

BASE = {
    "model": {"width": 32, "head_dim": 16, "layers": 1},
    "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
    "train": {"steps": 6, "eval_batches": 2, "device": "cpu"},
}
RATES = (2.0**-8, 2.0**-7, 2.0**-6)
OWN = Path(__file__).parent / "own_code.py"
MODELS = Path(__file__).parents[1] / "train" / "stack_models.py"


class Serial:
    slots = 1

    def run(self, next_jobs):
        while jobs := next_jobs():
            yield run_trial(*jobs[0])


def job(key, *sets, stop=(), own=None):
    config = (make_config if own is None else parse_values)(BASE, sets).model_dump(mode="json")
    extra = {"stop": [list(row) for row in stop]} if own is None else {"own": own.to_json()}
    return key, {"lr": config["optim"]["lr"]}, {**config, **extra}


def timeless(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def trials(folder):
    return {key: timeless(trial) for key, trial in Study.load(folder).trials.items()}


@pytest.mark.parametrize("reference", [Serial(), pytest.param(LocalProcesses(2), marks=pytest.mark.slow)])
def test_a_study_in_stacks_keeps_the_records_of_one_in_processes(reference, tmp_path):
    plan = StudyPlan(base=make_config(BASE), rules=("looped", "none"), loops=(1, 2), lrs=RATES, seeds=2)
    said = []
    run_study(plan, tmp_path / "stacks", executor=Stacks(1, 4, say=said.append))
    run_study(plan, tmp_path / "alone", executor=reference)
    assert trials(tmp_path / "stacks") == trials(tmp_path / "alone") and not said
    assert len(trials(tmp_path / "stacks")) == 18


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
    stacks = Stacks(1, 4, say=said.append)
    jobs = [
        *(job(f"a{seed}", f"train.seed={seed}", 'model.rule="none"') for seed in range(5)),
        job("wide", "model.width=64"),
        *(job(f"drawn{seed}", 'model.sampler="uniform"', f"train.seed={seed}") for seed in range(2)),
    ]
    groups = []
    while group := stacks._take(jobs, {key for taken in groups for key in taken}):
        groups.append([key for key, _, _ in group])
    assert groups == [["a0", "a1", "a2", "a3"], ["a4"], ["wide"], ["drawn0"], ["drawn1"]]
    assert said == ["trials run alone: model.sampler = 'uniform' draws each trial's own N"]


def test_two_workers_share_the_trials_of_a_graph():
    stacks = Stacks(2, 8)
    jobs = [job(f"a{seed}", f"train.seed={seed}") for seed in range(5)]
    first = stacks._take(jobs, set())
    second = stacks._take(jobs, {key for key, _, _ in first})
    assert [len(first), len(second)] == [3, 2]


@pytest.mark.parametrize("name,words", [("attending", None), ("counting", "its forward pass changes calls")])
def test_own_models_are_stacked_or_said_why_not(name, words):
    own = Own.at(f"{MODELS}:{name}")
    jobs = [job(f"{lr}", f"optim.lr={lr}", own=own) for lr in (0.01, 0.03)]
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

    monkeypatch.setattr("loopscale.study.stacks.stack_of", full)
    jobs, said = [job(f"a{seed}", f"train.seed={seed}") for seed in range(5)], []
    stacks = Stacks(1, 8, say=said.append)
    records, refusal = train_together(jobs)
    assert not records and refusal.limit == 2
    stacks._limit(stacks._graph(jobs[0]), refusal.limit, refusal.why)
    assert len(stacks._take(jobs, set())) == 2
    assert said == ["trials run at most 2 at once: a stack of 5 does not fit the memory"]


def test_sizes_that_make_no_stack_are_refused():
    with pytest.raises(UserError, match="a stack holds at least 2 trials, got 1: use --executor local"):
        Stacks(1, 1)
    with pytest.raises(UserError, match="workers must be at least 1, got 0"):
        Stacks(0)
    assert (Stacks(3, 5).slots, Stacks(3, 5).lanes) == (15, 3)


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--executor", "stack"], "unknown executor 'stack': did you mean 'stacks'?"),
        (["--executor", "stacks:1"], "a stack holds at least 2 trials, got 1: use --executor local"),
        (
            ["--executor", "stacks:many"],
            "how many trials a stack holds is a whole number, got 'many': such as stacks:8",
        ),
        (["--executor", "local:4"], "unknown executor 'local:4'"),
        (["--executor", "stacks", "--address", "auto"], "--address is of a Ray cluster: add --executor ray"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, tmp_path, capsys):
    assert main(["transfer", "--out", str(tmp_path / "s"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "s").exists()


def test_auto_measures_both_and_says_which(monkeypatch):
    config = job("a")[2]
    for ratio, kind, words in [
        (2.0, Stacks, "executor auto: stacks of 4 in 2 process(es), 2.00 times the throughput of a trial in each of 2"),
        (0.8, LocalProcesses, "a trial in each of 2 process(es); stacks of 4 in 2 process(es) have 0.80 times their"),
    ]:
        monkeypatch.setattr("loopscale.study.fastest.measured", lambda *_, r=ratio: (4, (10.0, 10.0 * r)))
        said = []
        auto = Fastest(config, 2, said.append)
        assert list(auto.run(list)) == [] and not said, "nothing is measured for a study that is finished"
        assert type(auto.chosen) is kind and words in said[0] and len(said) == 1
        assert (auto.slots, auto.lanes) == ((8, 2) if kind is Stacks else (2, 2))
    said = []
    assert type(Fastest(job("a", "train.compile=true")[2], 2, said.append).chosen) is LocalProcesses
    assert "as no stack can be made: train.compile compiles" in said[0]


def test_a_few_steps_give_both_paces():
    config, own = job("a", "train.steps=400")[2], Own.at(f"{MODELS}:attending")
    for sample in (config, job("b", own=own)[2]):
        assert 0 < alone_seconds(sample) < 1 and 0 < stack_seconds(sample, 3) < 1
    assert "changes calls" in stack_seconds(job("c", own=Own.at(f"{MODELS}:counting"))[2], 3)
    broken = {**job("d", own=Own.at(f"{OWN}:broken"))[2]}
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
    assert "cannot read" in capsys.readouterr().err
