"""The pilot of the outer rate and the one loop beside the study: what is asked for, in which order, and what is said."""

import math
import random
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest

from loopscale import UserError
from loopscale.records import Result, Trial
from loopscale.report.info import StudyInfo
from loopscale.report.study_page import sections
from loopscale.train import make_config
from loopscale.transfer import Study, StudyPlan, get_preset, summarise

BASE = make_config(
    {
        "model": {"width": 32, "head_dim": 16, "layers": 1},
        "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
        "train": {"steps": 4, "eval_batches": 2, "device": "cpu"},
    }
)
OUTER = 2.0**-3


def loss(config, gain=0.05):
    """Valleys: outer rate at 2^-3, hidden at 2^-6 and lower for longer training; `gain` for each doubling of loops."""
    hidden, model = math.log2(config["optim"]["lr"]), config["model"]
    outer = hidden + math.log2(config["optim"]["outer_lr"])
    longer = math.log2(config["train"]["steps"] / 4)
    seeds = 0.2 * math.sin(1 + config["train"]["seed"])
    return (
        3 + seeds + 0.02 * (outer + 3) ** 2 + 0.05 * (hidden + 6 + longer / 3) ** 2
        - gain * math.log2(model["loops"]) - 0.1 * longer
    )  # fmt: skip


def trial(job, value):
    """As a worker records it: stopped where its curve is above the job's thresholds."""
    key, cell, config = job
    curve = [[step, value + 0.1 * (4 - step)] for step in range(1, 5)]
    at = [step for step, most in config.get("stop", []) if fmean(loss for s, loss in curve if s <= step) > most]
    record = {"key": key, "cell": cell, "config": config, "loss": value, "diverged": False, "steps": 4, "seconds": 1.0}
    early = {"loss": None, "stopped": True, "steps": at[0], "seconds": at[0] / 4} if at else {}
    return Trial.model_validate({**record, "curve": curve, **early})


def ran(folder, plan, rng=None, gain=0.05):
    """The study to its end, two trials at once, the running ones ending in a random order; the jobs that it gave."""
    jobs, running = [], []
    with Study.open(folder, plan) as study:
        while True:
            while len(running) < 2 and (job := study.next_job()) is not None:
                running.append(job)
                jobs.append(job)
            if not running:
                return study, jobs
            ended = running.pop(rng.randrange(len(running)) if rng else 0)
            study.record(trial(ended, loss(ended[2], gain)))


def plan(**values):
    values = {"base": BASE, "rules": ("looped", "none"), "loops": (1, 4), "seeds": 2, "outer_pilot": True, **values}
    return StudyPlan(beside_one=True, early_end=True, **values)


def test_the_pilot_runs_first_and_every_trial_after_it_keeps_the_outer_rate_that_it_found(tmp_path):
    study, jobs = ran(tmp_path / "s", plan())
    kinds = [cell.get("swept", "lr") for _, cell, _ in jobs]
    count = kinds.count("outer_lr")
    assert kinds[:count] == ["outer_lr"] * count and 3 <= count <= 6
    assert study.outer_rate() == OUTER
    for _, _, config in jobs[count:]:
        assert config["optim"]["lr"] * config["optim"]["outer_lr"] == pytest.approx(OUTER)
    rates = {config["optim"]["lr"] for _, _, config in jobs[count:]}
    assert len(rates) > 4, "the hidden rate is swept alone"
    assert len({key for key, _, _ in jobs}) == len(jobs), "the pilot's trial at the found rate is the study's own"


def test_one_loop_is_trained_with_the_compute_of_the_largest_n_at_its_own_best_rate(tmp_path):
    study, jobs = ran(tmp_path / "s", plan())
    long = [(cell, config) for _, cell, config in jobs if cell.get("steps")]
    steps = {config["train"]["steps"] for _, config in long}
    assert len(steps) == 1 and 8 < steps.pop() < 16 and all(cell["loops"] == 1 for cell, _ in long)
    pays = summarise(study, {})["pays"]
    assert pays["equal_steps"] == pytest.approx(-0.1, abs=0.01), "what the valley gives"
    assert pays["equal_compute"] > 0.1 - 0.1 * math.log2(16 / 4) + 0.05
    assert pays["sentence"].startswith("At this length looping pays for its weights, not for its compute")


@pytest.mark.parametrize("lrs", [None, tuple(2.0**k for k in range(-9, -3))])
def test_whatever_order_trials_end_in_the_study_asks_for_the_same_ones(tmp_path, lrs):
    asked = [
        sorted(key for key, _, _ in ran(tmp_path / str(seed), plan(lrs=lrs), random.Random(seed))[1])
        for seed in range(2)
    ]
    assert all(one == other for one, other in pairwise(asked))


WIDE = tuple(2.0**k for k in range(-11, -2))


def test_on_a_fixed_grid_hopeless_trials_of_further_seeds_end_early_and_the_result_stays(tmp_path):
    study, _ = ran(tmp_path / "early", plan(lrs=WIDE, seeds=3))
    whole, _ = ran(tmp_path / "whole", replace(plan(lrs=WIDE, seeds=3), early_end=False))
    ended = [one for one in study.trials.values() if one.stopped]
    assert ended and all(one.cell.seed > 0 and abs(math.log2(one.cell.lr) + 6) > 1.4 for one in ended)
    found, all_of_it = summarise(study, {}), summarise(whole, {})
    assert found["rules"]["looped"]["optima"] == all_of_it["rules"]["looped"]["optima"]
    assert f"{len(ended)} of {len(study.trials)} trials were hopeless" in found["early"] and "early" not in all_of_it


def test_a_stopped_trial_at_the_rate_that_was_tuned_runs_to_its_end_for_the_regret(tmp_path):
    """The best rate at N = 1 is three octaves above that at N = 4: hopeless there, and what it costs is the question."""

    def drifting(config):
        loops, hidden = config["model"]["loops"], math.log2(config["optim"]["lr"])
        return loss(config) + 0.15 * math.log2(loops) * (hidden + 6) + 0.2 * math.log2(loops)

    with Study.open(tmp_path / "s", plan(rules=("looped",), lrs=WIDE, seeds=2)) as study:
        again = 0
        while (job := study.next_job()) is not None:
            again += job[0] in study.trials
            study.record(trial(job, drifting(job[2])))
    regret = summarise(study, {})["rules"]["looped"]["regret"]
    assert again == 1 and regret is not None and regret > 0.1
    assert not any(one.stopped for key, one in Study.load(tmp_path / "s").trials.items() if one.cell.lr == 2.0**-6)


def test_a_study_that_was_stopped_goes_on_where_it_was(tmp_path):
    whole, _ = ran(tmp_path / "whole", plan())
    for stopped in (2, 20):
        folder = tmp_path / str(stopped)
        with Study.open(folder, plan()) as study:
            for _ in range(stopped):
                job = study.next_job()
                study.record(trial(job, loss(job[2])))
        again, _ = ran(folder, plan())
        assert summarise(again, {}) == summarise(whole, {})


def test_without_one_loop_in_the_study_it_is_added_and_a_large_n_that_loses_is_said_to_lose(tmp_path):
    study, jobs = ran(tmp_path / "s", plan(loops=(2, 4), rules=("looped",)), gain=-0.2)
    assert {config["model"]["loops"] for _, _, config in jobs} == {1, 2, 4}
    result = summarise(study, {})
    assert set(result["rules"]["looped"]["optima"]) == {"2", "4"}, "it takes no part in the verdict"
    assert (
        "looping does not pay: at equal steps (4) 4 loops are 0.400 nats worse than one" in result["pays"]["sentence"]
    )


def test_the_strength_at_the_target_that_runs_to_its_lower_end_is_read_so(tmp_path):
    def valley(config):
        return loss(config) + 0.1 * (1 + math.log2(config["model"]["strength"])) * math.log2(config["model"]["loops"])

    with Study.open(tmp_path / "s", plan(strengths=(0.5, 1.0))) as study:
        while (job := study.next_job()) is not None:
            study.record(trial(job, valley(job[2])))
    assert "loops nearly switched off" in summarise(study, {})["pays"]["sentence"]


def test_the_record_of_a_study_holds_both_and_its_page_says_both(tmp_path):
    study, _ = ran(tmp_path / "s", plan(rules=("looped",), seeds=1, lrs=(2.0**-8, 2.0**-7, 2.0**-6)))
    result = Result.model_validate(summarise(study, {}))
    assert "one seed shows no noise" in result.pays.sentence
    assert result.outer.trials >= 3 and "of the trials' time" in result.outer.sentence
    told = {part.title: part.text for part in sections(StudyInfo(result, ()))}
    assert told["Does looping pay?"] == result.pays.sentence and told["The outer rate"] == result.outer.sentence


def test_a_folder_of_a_study_without_a_pilot_is_not_mixed_with_one_that_has_it(tmp_path):
    with Study.open(tmp_path / "s", StudyPlan(base=BASE)):
        pass
    with pytest.raises(UserError, match=r"optim.outer_lr 1.0 -> the study's pilot"), Study.open(tmp_path / "s", plan()):
        pass
    assert "outer_lr" in get_preset("demo").base(["optim.outer_lr=1"]).optim.model_fields_set, "then there is no pilot"
    assert "outer_lr" not in get_preset("demo").base().optim.model_fields_set
