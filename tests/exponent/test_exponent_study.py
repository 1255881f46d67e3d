"""An exponent study on planted losses: the powers come back, carrying costs what the formula says, nothing runs twice."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from planted import CURVES, EPS_AT_1, LR_AT_1, OUTER, A, G, Planted, base

from loopscale.errors import UserError
from loopscale.exponent import BEST, Cell, ExponentPlan, ExponentStudy, run_exponent, summarise
from loopscale.exponent.study import _cell as cell_of
from loopscale.records import ExponentResult, read_record
from loopscale.study import trial_key
from loopscale.train import load_config


def ran(plan, folder, noise=0.0):
    executor = Planted(plan, noise)
    return run_exponent(plan, folder, executor=executor), executor.ran


def test_the_planted_powers_and_the_target_come_back_and_carrying_costs_what_the_formula_says(tmp_path):
    plan = ExponentPlan(base(), loops=(2, 8, 32), seeds=2, fresh=2, target=128)
    result, _ = ran(plan, tmp_path / "study")
    assert result.a.value == pytest.approx(A, abs=1e-3) and result.g.value == pytest.approx(G, abs=1e-3)
    assert result.a.by_seed == pytest.approx((A, A), abs=1e-3) and result.g.by_seed == pytest.approx((G, G), abs=1e-3)
    assert result.target.eps.value == pytest.approx(EPS_AT_1 * 128**-A, rel=2e-3)
    assert result.target.lr.value == pytest.approx(LR_AT_1 * 128**-G, rel=2e-3)
    assert plan.eps(128, result.target.strength) == pytest.approx(result.target.eps.value)
    assert result.outer.rate == pytest.approx(OUTER, rel=0.01)
    for row in result.carried:
        if row.way == BEST:
            continue
        x, y = 4 * (A - row.a), 4 * (G - row.g)  # four doublings from 2 to 32
        costs = CURVES[0] * x * x + CURVES[1] * x * y + CURVES[2] * y * y
        assert row.regret.value == pytest.approx(costs, abs=2e-3), row.way
    assert read_record(tmp_path / "study" / "result.json", ExponentResult) == result


def test_the_rivals_are_rows_the_rule_in_the_optimiser_and_the_initialisation_that_people_have(tmp_path):
    carry = ("looped", "tied-lr-sqrt", "tied-lr", "gpt2-init")
    plan = ExponentPlan(base(), loops=(2, 8), seeds=1, fresh=2, carry=carry)
    result, cells = ran(plan, tmp_path / "study")
    rows = {row.way: row for row in result.carried}
    low = ExponentStudy.load(tmp_path / "study").surface(2)
    assert (rows["tied-lr"].a, rows["tied-lr"].g, rows["tied-lr-sqrt"].g) == (0.0, 1.0, 0.5)
    assert rows["tied-lr"].lr == pytest.approx(low.lr / 4, rel=1e-3), "the rate of the tied matrices / N, eps as it was"
    assert rows["tied-lr"].eps == pytest.approx(plan.eps(2, low.strength), rel=1e-3)
    base_line = rows["gpt2-init"]
    assert base_line.a is None and base_line.eps == 1 and base_line.lr == pytest.approx(low.lr, rel=1e-3)
    assert base_line.regret.value > 0.1 and "gpt2-init +" in " ".join(result.says), (
        "eps = 1 at N = 8, in the planted valley"
    )
    trained = [cell for cell in cells if cell["rule"] == "gpt2-init"]
    assert len(trained) == 2 and {cell["loops"] for cell in trained} == {8}
    assert plan.config(Cell(8, 1.0, 0.01, 0.1, 1000, rule="gpt2-init")).network(256).rule == "gpt2-init"


def test_the_trials_of_the_experiment_keep_their_keys():
    """Whoever copies records/exponent goes on with it: no change of the code may give its cells other keys."""
    study = ExponentStudy.load(Path(__file__).parents[2] / "records" / "exponent")
    trials = list(study.trials.values())[::7]
    keys = {trial_key(study.plan.job_config(cell_of(trial))): trial.key for trial in trials}
    assert len(keys) > 20 and all(made == kept for made, kept in keys.items())


def test_the_trials_of_the_experiment_give_its_record():
    """All that the record says, sentences too, follows from its trials; the next command names the folder."""
    records = Path(__file__).parents[2] / "records"
    recorded = read_record(records / "exponent.json", ExponentResult)
    found = summarise(ExponentStudy.load(records / "exponent"), {})
    apart = {"provenance", "next"}
    assert found.model_dump(exclude=apart) == recorded.model_dump(exclude=apart)
    assert recorded.says[0].startswith("The power is not one number: N^-0.51")


def test_what_the_search_saves_is_counted(tmp_path):
    plan = ExponentPlan(base(), loops=(2, 8), seeds=4, fresh=1)
    result, cells = ran(plan, tmp_path / "study")
    grid = [
        cell
        for cell in cells
        if cell["loops"] > 1 and cell["seed"] < 4 and cell["values"]["outer_rate"] == result.outer.rate
    ]
    places = {(cell["loops"], cell["strength"], cell["lr"]) for cell in grid}
    assert f"{4 * len(places) - len(grid)} of {4 * len(places)} trials were spared" in result.says[-1]
    assert len(grid) == 2 * (9 * 4 + 6)  # at each N the best cell and its neighbours with all seeds, the rest with one


def test_the_hidden_rate_moves_and_the_outer_rate_stays(tmp_path):
    plan = ExponentPlan(base(), loops=(2, 8), seeds=1, fresh=1, outer_rate=0.0625)
    _, cells = ran(plan, tmp_path / "study")
    configs = [plan.config(Cell(2, 1.0, lr, 0.0625, 0)) for lr in (0.005, 0.01)]
    assert [config.optim.lr * config.optim.outer_lr for config in configs] == pytest.approx([0.0625] * 2)
    assert {cell["values"]["outer_rate"] for cell in cells} == {0.0625}


def test_what_is_asked_and_found_does_not_depend_on_the_order_in_which_trials_ended(tmp_path):
    plan = ExponentPlan(base(), loops=(2, 8), seeds=3, fresh=2)
    result, cells = ran(plan, tmp_path / "study", noise=0.4)
    lines = (tmp_path / "study" / "trials.jsonl").read_text().splitlines()
    random.Random(1).shuffle(lines)
    (tmp_path / "study" / "trials.jsonl").write_text("\n".join(lines) + "\n")
    again = ExponentStudy.load(tmp_path / "study")
    assert again.next_job() is None and again.left() == 0
    assert summarise(again, {}).model_copy(update={"provenance": {}}) == result.model_copy(update={"provenance": {}})
    assert len(cells) == len({str(cell) for cell in cells}) == len(lines)


def test_a_study_goes_on_with_more_seeds_loops_and_ways_and_trains_only_what_is_new(tmp_path):
    small = ExponentPlan(base(), loops=(2, 8), seeds=2, fresh=2, carry=("looped", "sqrt"))
    _, first = ran(small, tmp_path / "study", noise=0.3)
    large = ExponentPlan(base(), loops=(2, 8), seeds=3, fresh=4, carry=("looped", "sqrt", "none"))
    result, second = ran(large, tmp_path / "study", noise=0.3)
    assert second and not {str(cell) for cell in first} & {str(cell) for cell in second}
    assert {row.way for row in result.carried} == {BEST, "looped", "sqrt", "none"}
    _, third = ran(large, tmp_path / "study", noise=0.3)
    assert third == []


def test_what_changes_the_meaning_of_trials_is_refused_with_old_and_new(tmp_path):
    ran(ExponentPlan(base(), loops=(2, 8), seeds=1, fresh=1), tmp_path / "study")
    changed = base().replaced("train", steps=4)
    with pytest.raises(UserError, match=r"train\.steps 3 -> 4"):
        ran(ExponentPlan(changed, loops=(2, 8), seeds=1, fresh=1), tmp_path / "study")


def test_an_optimum_at_the_end_of_the_search_is_said_with_the_values_to_add(tmp_path, parsed):
    plan = ExponentPlan(base(strength=2.0**12), loops=(2, 8), seeds=1, fresh=1)  # the planted valley lies far below
    result, _ = ran(plan, tmp_path / "study")
    assert result.a is None and all(valley.edge for valley in result.valleys)
    assert "lowest of what was tried" in result.next and result.sentence.startswith("No exponent")
    ((name, given),) = parsed(result.next)
    assert name == "exponent" and given["out"] == tmp_path / "study"
    again, more = ran(replace(plan, strengths=given["strengths"]), tmp_path / "study")
    assert len(given["strengths"]) == 5 + 6 and min(given["strengths"]) < 2.0**5, "six steps lower, its start kept"
    kept = replace(plan, strengths=tuple(2.0**k for k in range(-5, 8)))
    inside, _ = ran(kept, tmp_path / "study")
    assert again.a is None and more and inside.a is not None, "the command is repeated until the valley is reached"


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"seeds": 1}, {"seeds": 4}),
        ({"seeds": 2, "noise": 0.5}, {"seeds": 4, "fresh": 4}),
        ({"seeds": 2, "carry": ("looped",), "ways": None}, {"seeds": 4}),
    ],
)
def test_what_is_open_comes_with_a_command_that_parses(values, option, tmp_path, parsed):
    noise = values.pop("noise", 0.01)
    values.pop("ways", None)
    result, _ = ran(ExponentPlan(base(), loops=(2, 8), fresh=2, **values), tmp_path / "study", noise=noise)
    ((name, given),) = parsed(result.next)
    assert name == "exponent" and given.items() >= {**option, "out": tmp_path / "study"}.items()


def test_a_decision_leads_to_the_target_and_its_config_lies_there(tmp_path, parsed):
    plan = ExponentPlan(base(), loops=(2, 32), seeds=3, fresh=3, target=128)
    result, _ = ran(plan, tmp_path / "study", noise=0.001)
    assert result.verdict == "too strong"
    ((name, given),) = parsed(result.next)
    assert name == "train" and given["config"] == tmp_path / "study" / "target.toml"
    config = load_config(given["config"])
    assert config.model.loops == 128 and config.model.strength == pytest.approx(result.target.strength, rel=1e-3)
    assert config.optim.lr * config.optim.outer_lr == pytest.approx(result.outer.rate)
    without, _ = ran(replace(plan, target=None), tmp_path / "study", noise=0.001)
    ((name, given),) = parsed(without.next)
    assert name == "exponent" and given["target"] == "loops=128"


def test_one_seed_gives_numbers_and_no_interval_and_two_say_what_cannot_be_said(tmp_path):
    one, _ = ran(ExponentPlan(base(), loops=(2, 8), seeds=1, fresh=2), tmp_path / "one", noise=0.2)
    assert one.a.interval is None and one.verdict == "undecided" and "--seeds 4" in one.next
    two, _ = ran(ExponentPlan(base(), loops=(2, 8), seeds=2, fresh=2), tmp_path / "two", noise=0.2)
    assert two.a.interval is not None and any("Two seeds" in said for said in two.says)


def test_one_loop_stands_beside_the_largest_n_at_equal_steps_and_at_equal_compute(tmp_path):
    plan = ExponentPlan(base(), loops=(2, 8), seeds=2, fresh=3)
    result, cells = ran(plan, tmp_path / "study")
    ones = [cell for cell in cells if cell["loops"] == 1]
    assert sorted({cell["values"]["longer"] for cell in ones}) == [1.0, pytest.approx(result.pays.long_steps / 3)]
    assert result.pays.loops == 8 and result.pays.steps == 3 and 3 < result.pays.long_steps < 8 * 3
    assert result.pays.sentence in result.says


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loops": (4,)}, "--loops 4 is one"),
        ({"loops": (2, 2)}, "each number once|is one"),
        ({"loops": (2, 4), "target": 64}, "--loops 2,4,16"),
        ({"lrs": (0.1, 0.2)}, "at least 3 different values"),
        ({"strengths": (1.0, 1.001, 2.0)}, "closer than 5 %"),
        ({"strengths": (1.0, math.inf, 2.0)}, "positive numbers"),
        ({"carry": ("deepnorm",)}, "cannot carry by 'deepnorm'"),
        ({"carry": ("nan",)}, "from 0 to"),
        ({"seeds": 0}, "from 1 to 1,000"),
        ({"fresh": 10**9}, "from 1 to 1,000"),
        ({"outer_rate": -1.0}, "positive"),
    ],
)
def test_a_plan_that_no_exponent_follows_from_is_one_sentence(values, says):
    with pytest.raises(UserError, match=says) as told:
        ExponentPlan(base(), **values)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_the_price_counts_the_trials_that_a_study_in_the_middle_of_its_grid_trains(tmp_path):
    plan = ExponentPlan(base(), loops=(2, 8), seeds=3, fresh=2, strengths=(0.125, 0.25, 0.5, 1.0, 2.0))
    _, cells = ran(plan, tmp_path / "study")
    expected = [(cell.loops, cell.longer) for cell in plan.expected()]
    assert sorted(expected) == sorted((cell["loops"], cell["values"]["longer"]) for cell in cells)
