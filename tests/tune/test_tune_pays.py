"""Does looping pay: a tuning puts the target's loops beside one loop, at equal steps and at equal compute."""

from dataclasses import replace

import pytest
from test_tune_run import SMALL, Inline, settings

from loopscale.records import Journal
from loopscale.study import Silent, UserCode
from loopscale.train import parse_values
from loopscale.tune import Budget, Size, TuneSettings, tune
from loopscale.tune.beside import SHARE, Comparison, run_listed


class Made(Inline):
    """Gives each trial of the house model a made-up loss: 0.13 more at many loops, 0.3 less for long."""

    def submit(self, work, key, cell, config):
        def made(key, cell, config):
            loss = 2 + 0.01 * cell["seed"] + (0.13 if cell["loops"] > 1 else 0.0)
            loss -= 0.3 if config["train"]["steps"] > 100 else 0.0
            return {"key": key, "cell": cell, "config": config, "loss": loss, "diverged": False, "diverged_at": None,
                    "steps": config["train"]["steps"], "curve": [[1, loss]], "seconds": 1.0,
                    "stream_rms": {"initial": [], "final": []}}  # fmt: skip

        return super().submit(made, key, cell, config)


def house(width=64, trials=3):
    base = parse_values(
        {"model": {"width": 64, "layers": 1}, "train": {"steps": 100}, "data": {"path": "synthetic:copy"}}
    )
    return TuneSettings(base, SMALL, Size(8, 1, width, 100, 16), trials=trials, seeds=3)


def test_the_targets_loops_stand_beside_one_at_equal_steps_and_at_equal_compute(tmp_path):
    first = Made()
    plan = tune(house(), tmp_path / "t", executor=first, budget=Budget(pays=2))
    pays = plan["pays"]
    assert pays["loops"] == 8 and pays["equal_steps"] == pytest.approx(0.13) and 100 < pays["long_steps"] < 800
    assert pays["equal_compute"] == pytest.approx(0.43)
    assert "At this length looping does not pay: at equal steps (100) 8 loops are 0.130 nats worse" in pays["sentence"]
    beside = Journal(tmp_path / "t", "beside").trials.values()
    assert sorted((t.cell.loops, t.config["train"]["steps"]) for t in beside) == [
        *[(1, pays["long_steps"])] * 2, *[(8, 100)] * 2,
    ], "one loop for as many steps ran in the tuning"  # fmt: skip
    again = Made()
    assert tune(house(), tmp_path / "t", executor=again)["pays"] == pays and again.ran == [], "what ran is kept"


def test_one_loop_trains_longer_at_the_rate_that_the_published_rule_gives(tmp_path):
    plan = tune(house(), tmp_path / "t", executor=Made(), budget=Budget(pays=0))
    assert "pays" not in plan and plan["cost"]["pays_share"] > 3 * 2 / 12, "not measured, its price is known"
    compared = Comparison(house(), plan)
    long, short = (compared.config(size, 0) for size in (compared.long, compared.short))
    ratio = long.train.steps / short.train.steps
    assert long.optim.lr / short.optim.lr == pytest.approx(ratio**-0.32, rel=1e-3)
    assert long.model.loops == short.model.loops == 1


@pytest.mark.parametrize(("width", "compared"), [(64, False), (512, True)])
def test_it_is_trained_where_all_stays_within_a_tenth_of_a_sweep_at_the_target(width, compared, tmp_path):
    plan = tune(house(width), tmp_path / "t", executor=Made())
    assert ("pays" in plan) is compared
    whole = plan["cost"]["share_of_direct"] + plan["cost"]["pays_share"]
    assert (whole <= SHARE) is compared


def test_an_objective_is_compared_at_equal_steps_alone(tmp_path):
    plan = tune(replace(settings(), trials=3), tmp_path / "t", executor=Inline(), budget=Budget(pays=2))
    assert "equal compute was not measured" in plan["pays"]["sentence"]
    assert plan["pays"]["equal_compute"] is None and plan["pays"]["equal_steps"] is not None


def test_a_trial_that_the_tuning_stopped_early_is_trained_to_its_end(tmp_path):
    tune(house(), tmp_path / "t", executor=Made(), budget=Budget(pays=0))
    journal = Journal(tmp_path / "t")
    one = next(iter(journal.trials.values()))
    stopped = one.model_copy(update={"stopped": True})
    other = Journal(tmp_path / "other")
    (tmp_path / "other").mkdir()
    other.append(stopped)
    ran = Made()
    cell = one.cell.model_dump(mode="json", exclude_unset=True)
    records = run_listed(tmp_path / "other", "beside", {one.key: (cell, one.config)}, ran, Silent())
    assert ran.ran == [one.key] and not records[one.key].stopped


def test_a_target_of_one_loop_has_nothing_to_compare(tmp_path):
    code = UserCode.at(settings().user_code.place, "objective")
    flat = TuneSettings(settings().base, SMALL, SMALL.replace(width=128), trials=3, user_code=code)
    plan = tune(flat, tmp_path / "t", executor=Inline(), budget=Budget(pays=3))
    assert "pays" not in plan and "pays_share" not in plan["cost"]
