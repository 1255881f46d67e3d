"""Tuning with an executor that takes many trials at once: the search stays a search, the budget counts processes."""

from pathlib import Path

import pytest

from loopscale.study import InThisProcess, UserCode
from loopscale.study.trial import run_trial
from loopscale.train import parse_values
from loopscale.tune import Budget, Size, TuneSettings, tune

FILE = Path(__file__).parent / "valley.py"
BASE = parse_values({"optim": {"lr": 2.0**-7}, "model": {"width": 64, "layers": 1}, "train": {"steps": 100}})
SMALL = Size(1, 1, 64, 100, 16)


class Wide(InThisProcess):
    """Room for 16 at once in one process; a trial of the objective is said to take a second."""

    batch = 16

    def __init__(self):
        self.asked = []

    def pack(self, waiting, running):
        self.asked.append([cell["explored"] for _, cell, _ in waiting])
        return waiting

    def start(self, jobs):
        return self.submit(lambda: [{**run_trial(*job), "seconds": 1.0} for job in jobs])

    def records(self, jobs, found):
        return found


@pytest.fixture
def settings():
    code = UserCode.at(f"{FILE}:objective", "objective")
    return TuneSettings(BASE, SMALL, SMALL.replace(loops=32), trials=12, user_code=code)


def test_at_most_a_quarter_of_the_points_is_asked_for_at_once(settings, tmp_path):
    wide = Wide()
    plan = tune(settings, tmp_path / "t", executor=wide)
    explored = [asked for asked in wide.asked if asked[0]]
    counts = [len(asked) for asked in explored]
    assert max(counts) == 3 and sum(counts) == 12, "there is room for 16, a quarter of the trials is 3"
    assert abs(plan["proxy"]["values"]["lr"] / 2**-6.4 - 1) < 0.3


def test_a_budget_counts_the_seconds_of_processes_and_not_of_slots(settings, tmp_path):
    wide = Wide()
    plan = tune(settings, tmp_path / "t", executor=wide, budget=Budget(9))
    assert plan["provenance"]["trials"] <= 9
