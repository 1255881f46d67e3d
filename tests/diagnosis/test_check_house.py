"""check_parameterization tells flat models from growing ones, ours and foreign, and leaves them as they were."""

import copy

import pytest
import torch
from torch import nn

from loopscale import Loop, LoopedTransformer, ModelConfig, ScaledResidual, UserError, check_parameterization


def house(rule):
    return LoopedTransformer(ModelConfig(vocab_size=64, width=64, layers=2, rule=rule), seed=0)


@pytest.mark.parametrize("rule", ["looped", "looped-complete"])
def test_the_rules_that_claim_transfer_are_flat(rule):
    check = check_parameterization(house(rule), rule)
    assert check.passed, check.table()


@pytest.mark.parametrize("rule,stream", [("none", 0.7), ("sqrt", 0.25)])
def test_the_others_grow_in_the_forward_pass_and_in_the_first_step(rule, stream):
    check = check_parameterization(house(rule), rule)
    assert not check.passed
    assert check.slopes["stream"] > stream and check.slopes["change_first"] > 0.2, check.table()


def test_a_loop_of_scaled_residuals_is_flat():
    torch.manual_seed(0)

    def branch():
        return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

    stack = nn.Sequential(*(ScaledResidual(branch(), nn.LayerNorm(32)) for _ in range(3)))
    check = check_parameterization(Loop(stack, loops=4), batch=torch.randn(16, 32))
    assert check.passed, check.table()


def test_the_model_is_left_bit_identical():
    model = house("looped").train()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_parameterization(model, loops=(1, 2), steps=1)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model.training and torch.equal(rng, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_parameterization(nn.Linear(4, 4)),
        lambda: check_parameterization(house("looped"), loops=(4,)),
        lambda: check_parameterization(house("looped"), "loped"),
    ],
)
def test_mistakes_get_one_sentence(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
