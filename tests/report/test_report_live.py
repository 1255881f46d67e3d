"""The page of a running study: there before the first trial, redrawn from memory, small and quick at 10,000 trials."""

from __future__ import annotations

import json
import math
import time

import pytest
from made_study import cell_loss

from loopscale.report import StudyPage, write_study_page
from loopscale.report.page import render_page
from loopscale.transfer import StudyPlan, get_preset, stream_growth


class Running:
    """A study in the middle: what a driver holds in memory."""

    def __init__(self, folder, rates, seeds, loops=(1, 4, 16), **plan):
        self.folder = folder
        self.plan = StudyPlan(base=get_preset("demo").base(), loops=loops, preset="demo", **plan)
        self.rates, self.seeds = rates, seeds
        self.trials = range(len(rates) * seeds * len(loops) * len(self.plan.rules))

    def losses(self, arm):
        found = {}
        for lr in self.rates:
            for seed in range(self.seeds):
                loss = cell_loss(arm.rule, arm.loops, lr, 0.5, seed)
                found[lr, seed] = math.inf if loss is None else loss
        return found

    def missing(self):
        return [None] * 7


RATES = tuple(2.0 ** (e / 2) for e in range(-16, -5))


def shown(page):
    return json.loads(page.read_text().partition('id="figures">')[2].partition("</script>")[0])["figures"]


def test_the_law_is_there_before_the_first_trial(tmp_path):
    study = Running(tmp_path, (), 0)
    page = StudyPage(study).write()
    text = page.read_text()
    assert "0 of 7 trials have ended." in text and "The law at initialisation" in text
    assert "so far" not in text.partition("<script")[0] and 'http-equiv="refresh"' in text
    rows = shown(page)[0]["spec"]["data"]["values"]
    assert len([row for row in rows if "said" in row]) == 9


def test_the_law_at_initialisation_is_flat_for_looped_alone(tmp_path):
    growth = stream_growth(Running(tmp_path, (), 0).plan)
    ratio = {rule: growth[rule, 16] / growth[rule, 1] for rule in ("looped", "sqrt", "none")}
    assert 0.9 < ratio["looped"] < 1.1 < ratio["sqrt"] < ratio["none"]


def test_the_page_fills_from_memory_and_is_not_drawn_too_often(tmp_path):
    study = Running(tmp_path, RATES, 2)
    page = StudyPage(study, every=3600)
    assert page.update() and not page.update()
    text = (tmp_path / "report.html").read_text()
    assert f"{len(study.trials)} of {len(study.trials) + 7} trials have ended." in text
    assert "The losses so far" in text
    marks = shown(tmp_path / "report.html")[1]["spec"]["data"]["values"]
    losses = study.losses(study.plan.arms[-1])
    mean = (losses[RATES[4], 0] + losses[RATES[4], 1]) / 2
    assert any(row.get("y") == pytest.approx(mean) for row in marks)


def test_a_page_of_ten_thousand_trials_is_small_and_drawn_in_seconds(tmp_path):
    rates = tuple(2.0 ** (e / 16) for e in range(-160, -48))
    study = Running(tmp_path, rates, 6, loops=(1, 2, 4, 8, 16))
    assert len(study.trials) > 10_000
    page = StudyPage(study)
    page.write()
    began = time.process_time()
    assert page.write().stat().st_size <= 2e6
    assert time.process_time() - began < 5


def test_an_unfinished_folder_says_whether_a_process_runs_it(tmp_path):
    from loopscale.transfer import Study

    plan = StudyPlan(base=get_preset("demo").base(), loops=(1, 2), rules=("looped", "none"), preset="demo")
    with Study.open(tmp_path / "study", plan):
        running = write_study_page(tmp_path / "study").read_text()
    stopped = write_study_page(tmp_path / "study").read_text()
    assert "0 of " in running and "transfer study, running" in running and 'http-equiv="refresh"' in running
    assert "No process runs it: loopscale transfer, with the options it was begun with, goes on" in stopped
    assert "transfer study, stopped" in stopped and 'http-equiv="refresh"' not in stopped


@pytest.mark.parametrize(
    ("missing", "says"), [(7, "goes on where it stopped"), (0, "only the result: loopscale transfer")]
)
def test_a_study_that_nobody_runs_is_not_called_running(tmp_path, missing, says):
    study = Running(tmp_path, RATES, 1)
    study.driven, study.left = lambda: False, lambda: missing
    assert says in StudyPage(study).write_looked_at().read_text()


def test_a_finished_page_does_not_reload_itself():
    assert 'http-equiv="refresh"' not in render_page("t", "lead", [], [])
