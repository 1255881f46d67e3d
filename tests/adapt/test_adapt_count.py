"""attach counts N and L in the pass that it runs anyway: those of the diagnosis, or a sentence."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import loopscale as ls
from loopscale import UserError, attach, attachment
from loopscale.adapt.branch_hook import hook_of
from loopscale.adapt.present_rules import DepthRuleWarning

TOKENS = torch.zeros(2, 4, dtype=torch.long)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """Prelude 2, core 2 visited `loops` times, coda 3, and one layer that forward never calls."""

    def __init__(self, loops=8):
        super().__init__()
        self.table, self.loops = nn.Embedding(97, 16), loops
        self.prelude, self.core, self.coda, self.spare = (
            nn.ModuleList([Layer() for _ in range(n)]) for n in (2, 2, 3, 1)
        )

    def forward(self, tokens, loops=None):
        x = self.table(tokens)
        for layer in self.prelude:
            x = layer(x)
        for _ in range(loops or self.loops):
            for layer in self.core:
                x = layer(x)
        for layer in self.coda:
            x = layer(x)
        return x


class Wrapped(nn.Module):
    """Six modules, two sets of weights: tied by assignment."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(6)])
        for place, layer in enumerate(self.layers):
            for name in (0, 2):
                layer.mlp[name].weight = self.layers[place % 2].mlp[name].weight

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_prelude_coda_and_spare_layers_do_not_count_and_each_branch_has_its_own_factor():
    model = Model()
    handle = attach(model, loops=8, batch=TOKENS)
    eps = ls.residual_scale(ls.Depth(8, 2))
    assert handle.layers == 2 and handle.residual_scale == eps
    factors = [float(hook_of(part[0].mlp).scale) for part in (model.prelude, model.core, model.coda)]
    assert factors == pytest.approx([2**-0.5, eps, 2**-0.5])
    told = ls.diagnose(model, TOKENS)
    assert (told.loops, told.layers) == (8, 2) and told.effective_scale == pytest.approx(told.prescribed_scale)
    text = str(handle)
    assert "core.*.mlp  x 2: visited 8 times, multiplied by 0.08839" in text
    assert "coda.*.mlp  x 3: visited once, multiplied by 0.7071" in text
    handle.set_loops(4)
    assert "visited 4 times, multiplied by 0.1768" in str(handle) and handle.record()["loops"] == 4
    with pytest.warns(DepthRuleWarning, match="visits the layers 8 times"):  # diagnose tried other N
        model(TOKENS)


def test_modules_with_the_same_weights_are_one_layer():
    handle = attach(Wrapped(), loops=3, batch=torch.randn(2, 4, 16))
    assert handle.layers == 2 and handle.residual_scale == ls.residual_scale(ls.Depth(3, 2))


def test_strength_and_base_layers_are_spelled_out():
    handle = attach(Model(), loops=8, strength=0.125, base_layers=1, batch=TOKENS)
    assert "eps 0.01105 = strength 0.125 x 0.08839 (L / base_layers = 2 / 1)" in str(handle)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(loops=4), "you say loops=4 and the forward pass visits 'core.0.mlp' 8 times: give loops=8"),
        (dict(loops=1), "visits 'core.0.mlp' 8 times"),
        (dict(loops=8, once="core.0"), "once= marks 'core.0.mlp', and the forward pass visits it 8 times"),
        (dict(loops=8, strenght=2), "no keyword 'strenght': did you mean 'strength'"),
    ],
)
def test_another_count_is_refused_and_the_model_untouched(wrong, message):
    model = Model()
    with pytest.raises(UserError, match=message) as caught:
        attach(model, batch=TOKENS, **wrong)
    assert "\n" not in str(caught.value) and not any(m._forward_hooks for m in model.modules())


def test_a_batch_may_hold_the_models_own_number_of_loops():
    handle = attach(Model(), loops=3, batch={"tokens": TOKENS, "loops": 3})
    assert handle.loops == 3 and handle.layers == 2


@pytest.mark.parametrize(
    "depart",
    [
        lambda model: attachment(model).set_loops(4),
        lambda model: setattr(model, "loops", 4),
        lambda model: attachment(model).set_loops(4) and setattr(model, "loops", 2),
    ],
    ids=["the handle alone", "the model alone", "both, to different N"],
)
@pytest.mark.parametrize("prepare", [lambda model: model, copy.deepcopy, lambda model: fold_and_back(model)])
def test_a_pass_with_another_n_than_that_of_eps_is_said_once(depart, prepare):
    model = Model()
    attach(model, loops=8, batch=TOKENS)
    model = prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(TOKENS)
        attachment(model).set_loops(3)
        model(TOKENS, loops=3)
    attachment(model).set_loops(8)
    depart(model)
    with pytest.warns(UserWarning, match=r"set both, the model's own number of loops and handle\.set_loops") as said:
        model(TOKENS)
        model(TOKENS)
    assert len(said) == 1 and f"visits the layers {model.loops} times" in str(said[0].message)
    ls.detach(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def fold_and_back(model):
    ls.fold(model, batch=TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(TOKENS)
    return ls.unfold(model)


def test_a_stack_that_its_caller_loops_is_warned_of():
    stack = nn.Sequential(Layer(), Layer())
    with pytest.warns(UserWarning, match="visits every layer once and you say loops=8") as said:
        assert attach(stack, loops=8, batch=torch.randn(2, 16)).layers == 2
        stack(torch.randn(2, 16))
    assert len(said) == 1


def test_blocks_side_by_side_are_one_layer_and_a_branch_may_have_an_n_of_its_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([Layer() for _ in range(3)])

        def forward(self, x):
            for _ in range(4):
                x = torch.stack([expert(x) for expert in self.experts]).mean(0)
            return x

    assert attach(Experts(), loops=4, batch=torch.randn(2, 16)).layers == 1

    class Mixed(nn.Module):
        """A mixer looped four times around one feed-forward branch, in each of two layers."""

        def __init__(self):
            super().__init__()
            self.norm, self.mixer, self.ffn = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            for _ in range(4):
                x = x + self.mixer(torch.tanh(self.norm(x)))
            return x + self.ffn(torch.relu(self.norm(x)))

    handle = attach(nn.Sequential(Mixed(), Mixed()), loops=4, batch=torch.randn(2, 16))
    factors = {row["name"]: row["factor"] for row in handle.to_json()["branches"]}
    assert handle.layers == 2 and factors["0.mixer"] == ls.residual_scale(ls.Depth(4, 2))
    assert factors["1.ffn"] == ls.residual_scale(ls.Depth(1, 2))


def test_branches_in_a_list_are_layers_and_experts_that_are_routed_to_are_one():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(
                [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(3)]
            )

        def forward(self, x):
            for _ in range(4):
                for block in self.blocks:
                    x = x + block(x)
            return x

    assert attach(Bare(), loops=4, batch=torch.randn(2, 16)).layers == 3

    class Routed(Bare):
        def forward(self, x):
            for _ in range(4):
                out = torch.zeros_like(x)
                chosen = torch.arange(len(x)) % 3
                for place, block in enumerate(self.blocks):
                    out[chosen == place] += 0.5 * block(x[chosen == place])
                x = x + out
            return x

    handle = attach(Routed(), loops=4, batch=torch.randn(6, 16))
    assert [branch.name for branch in handle.branches] == ["blocks.0", "blocks.1", "blocks.2"]
    assert handle.layers == 1 and handle.residual_scale == 0.25
