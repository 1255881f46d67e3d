"""Lazy, scripted and re-parametrised modules: right or one sentence, and the model bit-identical afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from loopscale import UserError, attach, convert, diagnose, fold, watch

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self, wrap=lambda module: module):
        super().__init__()
        self.norm, self.mlp = (
            nn.LayerNorm(16),
            nn.Sequential(wrap(nn.Linear(16, 32)), nn.GELU(), wrap(nn.Linear(32, 16))),
        )

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Looped(nn.Module):
    def __init__(self, **more):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(**more)])

    def forward(self, x):
        for _ in range(4):
            for layer in self.layers:
                x = layer(x)
        return x


def kept(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


WRAPS = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": spectral_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", WRAPS)
def test_reparametrised_weights_stay_bit_identical(name, train):
    model = Looped(wrap=WRAPS[name]).train(train)
    state = kept(model)
    attach(model, loops=4, batch=X).detach()
    diagnose(model, X)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training is train


@pytest.mark.filterwarnings("ignore")
def test_a_scale_is_folded_into_weight_norm_and_not_into_spectral_norm():
    model = Looped(wrap=parametrizations.weight_norm)
    attach(model, loops=4, batch=X)
    before = model(X)
    fold(model, batch=X)
    torch.testing.assert_close(model(X), before, atol=1e-5, rtol=1e-4)
    other = Looped(wrap=parametrizations.spectral_norm).eval()
    attach(other, loops=4, batch=X)
    with pytest.raises(UserError, match="ends in no weight of its own"):
        fold(other, batch=X)


@pytest.mark.parametrize("act", [lambda m: attach(m, loops=4, batch=X), lambda m: convert(m, 0, 1, loops=4, batch=X)])
def test_lazy_and_scripted_models_get_a_sentence(act):
    model = Looped()
    model.layers[0].mlp[0] = nn.LazyLinear(32)
    with pytest.raises(UserError, match=r"'layers\.0\.mlp\.0\.weight' is lazy .*run the model once"):
        act(model)
    assert nn.parameter.is_lazy(model.layers[0].mlp[0].weight)
    with pytest.raises(UserError, match="a scripted model hides"):
        act(torch.jit.script(Layer()))


def test_a_scripted_part_is_watched_and_cannot_be_a_branch():
    model = Looped()
    model.layers[0].mlp = torch.jit.script(model.layers[0].mlp)
    with watch(model) as seen:
        model(X)
    assert seen.visits()["layers.0.mlp"] == 4
    with pytest.raises(UserError, match="scripted module, which takes no hook"):
        attach(model, loops=4, branches="layers.*.mlp", batch=X)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_adds_in_place_is_checked_on_copies():
    class InPlace(Layer):
        def forward(self, x):
            x += self.mlp(self.norm(x))
            return x

    class Twice(Looped):
        def forward(self, x):
            return super().forward(x.clone())

    model = Twice()
    model.layers[0] = InPlace()
    batch = X.clone()
    assert attach(model, loops=4, batch=batch).residual_scale == 0.25 and torch.equal(batch, X)


class Scribbling(Looped):
    """It writes into what it is given."""

    def forward(self, x):
        return super().forward(x.mul_(2.0))


class Learning(Looped):
    """It moves a parameter of its own at every call."""

    def forward(self, x):
        with torch.no_grad():
            self.layers[0].norm.weight.mul_(1.5)
        return super().forward(x)


@pytest.mark.parametrize("act", [lambda m, x: attach(m, loops=4, batch=x), diagnose])
@pytest.mark.parametrize("given", [lambda x: x, lambda x: (x,), lambda x: {"x": x}])
def test_what_a_model_writes_into_its_batch_is_written_into_a_copy_of_each_pass(act, given):
    batch = X.clone()
    act(Scribbling(), given(batch))
    assert torch.equal(batch, X)


@pytest.mark.parametrize("act", [lambda m: attach(m, loops=4, batch=X), lambda m: diagnose(m, X)])
def test_a_model_that_changes_a_parameter_when_called_gets_a_sentence_and_the_parameter_back(act):
    model = Learning()
    with pytest.raises(UserError, match=r"changes its parameter 'layers\.0\.norm\.weight'"):
        act(model)
    assert torch.equal(model.layers[0].norm.weight, torch.ones(16))


def test_weights_made_under_inference_mode_get_a_sentence():
    with torch.inference_mode():
        model = Looped()
    with pytest.raises(UserError, match="was made under inference_mode"):
        diagnose(model, X)
