"""Does looping pay: the target beside one loop, in differences over the same seeds and in words."""

import math

import pytest

from loopscale.train import equal_steps, make_config, trial_flops
from loopscale.transfer import Beside, does_looping_pay

SEEDS = (0.00, 0.31, -0.22)  # what each seed owes: far more than the differences


def at(loss, noise=(0.001, -0.001, 0.0)):
    return [loss + seed + own for seed, own in zip(SEEDS, noise, strict=True)]


def test_eight_loops_that_are_worse_than_one_are_said_to_be_worse_whatever_the_seeds_owe():
    pays = does_looping_pay(Beside(8, 100, at(2.13), at(2.0, (0.0, 0.0, 0.0)), at(1.8, (0.0, 0.001, 0.0)), 740))
    assert pays.equal_steps == pytest.approx(0.13)
    assert 0.12 < pays.equal_steps_interval[0] < 0.13 < pays.equal_steps_interval[1] < 0.14
    assert pays.equal_compute == pytest.approx(0.33, abs=0.001)
    assert pays.sentence.startswith(
        "At this length looping does not pay: at equal steps (100) 8 loops are 0.130 nats worse"
    )
    assert (
        "at equal compute (one loop for 740 steps, as many FLOPs) 8 loops are 0.330 nats worse than one"
        in pays.sentence
    )


@pytest.mark.parametrize(
    ("short", "long", "verdict"),
    [
        (2.1, 2.05, "looping pays, for its compute too"),
        (2.1, 1.9, "looping pays for its weights, not for its compute"),
        (2.1, 2.0, "looping pays for its weights; whether for its compute is open"),
        (2.0, 1.9, "looping does not pay for its compute; whether for its weights is open"),
        (1.9, 2.1, "looping does not pay:"),
        (2.0, 2.0, "Whether looping pays at this length is open"),
    ],
)
def test_the_verdict_follows_both_differences(short, long, verdict):
    target = at(2.0, (0.002, -0.003, 0.001))
    assert verdict in does_looping_pay(Beside(8, 100, target, at(short), at(long), 700)).sentence


def test_a_difference_within_its_interval_is_not_told_apart():
    said = does_looping_pay(Beside(4, 100, [2.0, 2.3, 1.8], [2.01, 2.25, 1.83])).sentence
    assert "4 loops and one are not told apart" in said
    assert said.startswith("Whether looping pays") and "equal compute was not measured" in said


def test_one_seed_decides_nothing_and_a_divergence_on_either_side_is_said():
    assert "one seed shows no noise" in does_looping_pay(Beside(4, 100, [2.0], [2.5])).sentence
    one = does_looping_pay(Beside(4, 100, at(2.0), [math.inf, 2.0, 2.0]))
    assert "4 loops train and one diverges" in one.sentence and one.equal_steps is None
    lost = does_looping_pay(Beside(4, 100, [math.inf, 2.0, 2.0], at(2.0)))
    assert lost.sentence.startswith("Looping does not pay here: at equal steps (100) 4 loops diverge")


def test_a_strength_at_its_lower_end_is_read_as_loops_nearly_switched_off():
    said = does_looping_pay(Beside(4, 100, at(2.0), at(2.0), at_lower_end=True)).sentence
    assert "does best with its loops nearly switched off" in said


def test_equal_compute_is_counted_in_flops_and_in_visits_for_a_user_model():
    many, one = (make_config({"model": {"loops": n}, "train": {"steps": 50}}) for n in (16, 1))
    steps = equal_steps(many, one, 256)
    each = trial_flops(one, 256, steps=1)
    assert abs(steps * each - 50 * trial_flops(many, 256, steps=1)) <= each / 2
    assert equal_steps(many, one, 256, user_model=True) == 16 * 50
