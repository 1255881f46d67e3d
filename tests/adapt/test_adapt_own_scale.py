"""attach refuses a model that scales its branches itself, and says in one sentence when loops is missing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import loopscale as ls
from loopscale import UserError, attach, convert


class Block(nn.Module):
    def __init__(self, own=True):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.eps = ls.ScaledUpdate() if own else nn.Identity()

    def forward(self, x):
        return x + self.eps(self.mlp(self.norm(x)))


class Model(nn.Module):
    def __init__(self, own=True):
        super().__init__()
        stack = nn.Sequential(Block(own), Block(own))
        self.body = ls.Loop(stack, loops=4) if own else stack
        self.n_loop, self.own = 4, own

    def forward(self, x):
        if self.own:
            return self.body(x)
        for _ in range(self.n_loop):
            x = self.body(x)
        return x


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (Model, "'body' is a Loop"),
        (Block, "'eps' is a ScaledUpdate"),
        (lambda: nn.Sequential(ls.ScaledResidual(nn.Linear(16, 16))), "'0' is a ScaledResidual"),
    ],
)
def test_a_model_that_scales_its_branches_is_refused_and_left_alone(make, named):
    model, x = make(), torch.randn(3, 16)
    before = model(x)
    with pytest.raises(UserError, match=named) as caught:
        attach(model, loops=4, batch=x)
    assert "square eps" in str(caught.value) and "\n" not in str(caught.value)
    assert torch.equal(model(x), before) and not any(m._forward_hooks for m in model.modules())


def test_it_is_allowed_when_asked_for():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(3, 16)
    assert attach(model, loops=4, batch=x, stacked="allow").layers == 2


def test_converting_even_scales_branches_too_and_refuses():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    )
    model.extra = ls.ScaledUpdate()
    with pytest.raises(UserError, match="'extra' is a ScaledUpdate"):
        convert(model, 0, 2, loops=2, steps="even", batch=torch.randn(2, 4, 16))


def test_loops_is_asked_for_in_one_sentence():
    with pytest.raises(UserError, match=r"attach\(model, loops=8\)") as caught:
        attach(Model(own=False))
    assert "\n" not in str(caught.value)
