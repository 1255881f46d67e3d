"""Gradients that have to be formed are formed a few parameters at a time, and kappa does not depend on how many."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call

from loopscale.diagnosis import diagnose
from loopscale.diagnosis.gradients import pretend_loss


class Attends(nn.Module):
    """Torch's own attention, whose output matrix is used inside a call that no tape sees into."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True) for _ in range(3)
        )

    def forward(self, x):
        for _ in range(4):
            for layer in self.layers:
                x = layer(x)
        return x


def kappas():
    torch.manual_seed(0)
    return diagnose(Attends(), torch.randn(2, 5, 16), products=0).details["kappa_by_parameter"]


def test_kappa_is_the_same_for_any_number_of_backward_passes(monkeypatch):
    asked, grad = [], torch.autograd.grad

    def counted(loss, inputs, **more):
        # Of the weights alone: the gradients of the visits' outputs are asked for as well.
        asked.append(sum(t.numel() for t in inputs if isinstance(t._base, torch.nn.Parameter)))
        return grad(loss, inputs, **more)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    whole, at_once = kappas(), max(asked)
    asked.clear()
    monkeypatch.setattr(sys.modules["loopscale.diagnosis.gradients"], "_MOST_FORMED", 16 * 48 * 4)
    parted = kappas()
    assert max(asked) < at_once / 3 and sum(size > 0 for size in asked) >= 3
    assert any("self_attn" in name for name in whole) and any("linear1" in name for name in whole)
    assert parted == pytest.approx(whole, rel=1e-5)


def test_weights_too_large_to_form_are_named(monkeypatch):
    torch.manual_seed(0)
    model, x = Attends(), torch.randn(2, 5, 16)
    whole = diagnose(model, x, products=0)
    assert whole.details["kappa_left_out"] == [] and "too large" not in whole.text()
    monkeypatch.setattr(sys.modules["loopscale.diagnosis.gradients"], "_MOST_FORMED", 16 * 48 * 4 - 1)
    parted = diagnose(model, x, products=0)
    names = [f"layers.{i}.self_attn.in_proj_weight" for i in range(3)]
    assert parted.details["kappa_left_out"] == names
    assert set(whole.details["kappa_by_parameter"]) - set(parted.details["kappa_by_parameter"]) == set(names)
    assert f"without {names[0]}, {names[1]} and 1 more: too large" in parted.text()


def test_kappa_of_a_weight_that_is_looked_at_before_it_is_used_is_that_of_a_copy_for_every_visit():
    torch.manual_seed(0)
    model, x = Attends().eval(), torch.randn(2, 5, 16)
    name = "layers.1.self_attn.in_proj_weight"
    copies = [model.get_parameter(name).detach().clone().requires_grad_() for _ in range(4)]
    h = x
    for copy in copies:
        for i, layer in enumerate(model.layers):
            own = {"self_attn.in_proj_weight": copy} if i == 1 else {}
            h = functional_call(layer, own, (h,))
    pretend_loss(h, x).backward()
    each = torch.stack([copy.grad.flatten() for copy in copies])
    kappa = float(each.sum(0).square().sum() / each.square().sum())
    assert diagnose(model, x, products=0).details["kappa_by_parameter"][name] == pytest.approx(kappa, rel=1e-4)
