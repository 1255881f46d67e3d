"""A stack gives every member the losses it has alone: bitwise on a CPU, at every step, for all that may differ."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale import UserError
from loopscale.batched import UnstackableError, fit_stack, house_stack, why_not
from loopscale.train import fit, make_config
from loopscale.train.loop import train_step
from loopscale.train.training import prepare

BASE = {
    "model": {"width": 32, "head_dim": 16, "layers": 1, "loops": 2, "base_layers": 1},
    "data": {"path": "synthetic:copy", "context": 8, "batch_size": 2},
    "train": {"steps": 6, "eval_batches": 2, "device": "cpu"},
}
DATA = make_config(BASE).load_data()
members = st.lists(
    st.fixed_dictionaries(
        {
            "optim.lr": st.floats(1e-4, 0.3),
            "optim.weight_decay": st.sampled_from([0.0, 0.1, 0.5]),
            "optim.warmup": st.sampled_from([0.0, 0.4]),
            "optim.schedule": st.sampled_from(["constant", "linear", "cosine", "wsd"]),
            "optim.clip": st.sampled_from([0.0, 0.3, 1.0]),
            "model.rule": st.sampled_from(["looped", "sqrt", "none", "looped-complete"]),
            "model.strength": st.sampled_from([0.3, 1.0, 2.0]),
            "train.seed": st.integers(0, 9),
        }
    ),
    min_size=1,
    max_size=4,
)


def configs(members, *sets):
    return [make_config(BASE, [*sets, *(f"{key}={value}" for key, value in member.items())]) for member in members]


def together(configs, stops=None):
    found = dict(fit_stack(house_stack(configs, DATA), stops))
    return [replace(found[place], seconds=0.0) for place in range(len(configs))]


def alone(config, **options):
    return replace(fit(config, dataset=DATA, **options), seconds=0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
@given(members)
@settings(deadline=None, max_examples=4)
def test_every_member_of_a_stack_is_bitwise_what_it_is_alone(optimizer, members):
    asked = configs(members, f"optim.optimizer={optimizer}")
    # The curve holds the loss of each of the six steps; `Fit` compares it, the streams, the evaluation, everything.
    assert together(asked) == [alone(config) for config in asked]


@pytest.mark.parametrize(
    "sets",
    [
        ["model.kv_heads=1", "model.qk_norm=true", "model.tied_readout=true"],
        ["model.prelude=1", "model.coda=1", 'model.injection="linear"', "model.visit_embedding=2"],
        ['model.norm="sandwich"', "model.order=layer", "model.layers=2", 'model.injection="diagonal"'],
        ['model.rule="deeploop"', "model.gradient_visits=1"],
        ["model.base_width=16", "model.layers=2", "data.order=epochs"],
    ],
    ids=lambda sets: sets[0],
)
def test_every_option_of_the_model_stacks(sets):
    asked = configs([{"optim.lr": 0.01, "train.seed": 1}, {"optim.lr": 0.03, "model.strength": 0.5}], *sets)
    assert together(asked) == [alone(config) for config in asked]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_in_double_precision_weights_agree_to_1e_10_at_every_step(optimizer):
    rates = [{"optim.lr": 0.1, "train.seed": 3}, {"optim.lr": 0.01, "model.rule": "none", "model.strength": 0.7}]
    asked = configs(rates, f"optim.optimizer={optimizer}", "train.steps=12")
    torch.set_default_dtype(torch.float64)
    try:
        serial, stack = [prepare(config, DATA) for config in asked], house_stack(asked, DATA)
    finally:
        torch.set_default_dtype(torch.float32)
    for _ in range(12):
        records = stack.step()
        for k, training in enumerate(serial):
            assert records[k].loss == pytest.approx(train_step(training).loss, abs=1e-10)
            for name, weight in training.model.named_parameters():
                assert weight.dtype == torch.float64
                assert torch.allclose(stack.state[f"model.{name}"][k], weight, rtol=0, atol=1e-10)


def test_a_member_that_diverges_leaves_and_the_others_do_not_notice():
    lost = {"optim.lr": 3e38, "optim.clip": 0.0, "optim.schedule": "constant", "optim.warmup": 0.0}
    asked = configs([{"optim.lr": 0.01}, lost, {"optim.lr": 0.02, "train.seed": 2}], "optim.optimizer=sgd")
    stack = house_stack(asked, DATA)
    order = [(place, result.diverged_at) for place, result in fit_stack(stack)]
    assert order[0][0] == 1 and order[0][1] is not None and {place for place, _ in order[1:]} == {0, 2}
    assert together(asked) == [alone(config) for config in asked]


def test_members_are_stopped_one_by_one():
    asked = configs([{"train.seed": seed} for seed in range(3)])
    stops = [lambda record: record.step == 2, None, lambda record: record.step == 4]
    found = together(asked, stops)
    assert [result.stopped for result in found] == [True, False, True]
    assert [result.steps for result in found] == [2, 6, 4]
    assert found[1] == alone(asked[1])
    assert found[2] == alone(asked[2], stop=stops[2])


def test_the_share_of_the_time_adds_up():
    found = dict(fit_stack(house_stack(configs([{"train.seed": seed} for seed in range(3)]), DATA)))
    shares = [result.seconds for result in found.values()]
    assert all(share > 0 for share in shares) and max(shares) - min(shares) < 0.5 * max(shares)


def test_what_has_another_shape_or_option_is_refused():
    with pytest.raises(UnstackableError, match="different shapes"):
        house_stack([*configs([{}]), *configs([{}], "model.width=64")], DATA)
    for option, words in [
        ('model.sampler="uniform"', "sampler"),
        ("train.compile=true", "compile"),
        ("train.recompute=1", "recompute"),
        ("train.accumulate=2", "accumulate"),
        ("train.loss_rows=8", "loss_rows"),
    ]:
        assert words in why_not(make_config(BASE, [option]))
    assert why_not(make_config(BASE)) is None
    with pytest.raises(UserError):
        house_stack(configs([{}], "model.vocab_size=3"), DATA)


def test_a_stack_of_streams_reads_each_in_its_order():
    asked = configs([{"optim.lr": 0.01}, {"optim.lr": 0.02}], 'data.path="stream:synthetic:copy"')
    found = dict(fit_stack(house_stack(asked)))
    for place, config in enumerate(asked):
        assert found[place].val_loss == fit(config).val_loss and math.isfinite(found[place].val_loss)
