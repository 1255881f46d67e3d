"""check_parameterization tells flat models from growing ones, ours and foreign; watch sees every visit."""

import copy

import pytest
import torch
from torch import nn

from loopscale import Loop, LoopedTransformer, ModelConfig, ScaledResidual, UserError, check_parameterization, watch


def house(rule):
    return LoopedTransformer(ModelConfig(vocab_size=64, width=64, layers=2, rule=rule), seed=0)


@pytest.mark.parametrize("rule", ["looped", "looped-complete"])
def test_the_rules_that_claim_transfer_are_flat(rule):
    check = check_parameterization(house(rule), rule)
    assert check.passed, str(check)


@pytest.mark.parametrize("rule,stream", [("none", 0.7), ("sqrt", 0.3)])
def test_the_others_grow_in_the_forward_pass_and_in_the_first_step(rule, stream):
    check = check_parameterization(house(rule), rule)
    assert not check.passed
    assert check.slopes["stream"] > stream and check.slopes["first_step"] > 0.2, str(check)


class Foreign(nn.Module):
    """A residual MLP on vectors that nobody wrote for this library."""

    def __init__(self, loops, scale):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.head, self.loops, self.scale = nn.Linear(32, 5), loops, scale

    def forward(self, x):
        for _ in range(self.loops):
            for layer in self.layers:
                x = x + self.scale * layer(x)
        return self.head(x)


def test_a_factory_of_a_foreign_model_is_checked():
    x = torch.randn(16, 32)
    good = check_parameterization(lambda n: Foreign(n, 0.5 / n), batch=x, loops=(1, 2, 4, 8))
    bad = check_parameterization(lambda n: Foreign(n, 0.5), batch=x, loops=(1, 2, 4, 8))
    assert good.slopes["first_step"] < 0.2 < bad.slopes["first_step"], f"{good}\n{bad}"


def test_a_loop_of_scaled_residuals_is_flat():
    torch.manual_seed(0)
    stack = nn.Sequential(
        *(
            ScaledResidual(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), nn.LayerNorm(32))
            for _ in range(3)
        )
    )
    check = check_parameterization(Loop(stack, loops=4), batch=torch.randn(16, 32), layers=3)
    assert check.passed, str(check)


def test_the_model_is_left_bit_identical():
    model = house("looped").train()
    state, mode = copy.deepcopy(model.state_dict()), model.training
    rng = torch.get_rng_state()
    check_parameterization(model, loops=(1, 2), steps=1)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model.training is mode and torch.equal(rng, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_watch_counts_visits_not_modules():
    model, tokens = house("none"), torch.zeros(1, 6, dtype=torch.long)
    with watch(model) as visits, torch.no_grad():
        model(tokens, loops=5)
    assert visits.counts()["core.0"] == visits.counts()["core.1"] == 5
    assert [reading.visit for reading in visits.of("core.0")] == [0, 1, 2, 3, 4]
    entry = visits.of("core.0")[0].rms_in
    assert entry == pytest.approx(model.visit_rms(tokens, 5)[0])
    assert visits.of("core.1")[-1].rms_out == pytest.approx(model.visit_rms(tokens, 5)[-1])


def test_watch_removes_its_hooks_when_the_block_raises_and_never_reports_nothing():
    model = house("looped")
    with pytest.raises(RuntimeError, match="mine"), watch(model):
        raise RuntimeError("mine")
    with pytest.raises(UserError, match="no module of the model was executed"), watch(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: check_parameterization(nn.Linear(4, 4)), "Linear.forward takes no loops= argument: pass a factory"),
        (lambda: check_parameterization(house("looped"), loops=(4,)), "at least two different numbers of loops"),
        (lambda: check_parameterization(house("looped"), "loped"), "did you mean 'looped'"),
        (lambda: check_parameterization(house("looped"), steps=0), "steps must be at least 1"),
        (lambda: check_parameterization(lambda n: Foreign(n, 1.0)), "pass batch="),
    ],
)
def test_mistakes_get_a_sentence(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)
