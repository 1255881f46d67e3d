"""Gradients that have to be formed are formed a few parameters at a time, and kappa does not depend on how many."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose


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
    return diagnose(Attends(), torch.randn(2, 5, 16), seconds=0.0).details["kappa_by_parameter"]


def test_kappa_is_the_same_for_any_number_of_backward_passes(monkeypatch):
    asked, grad = [], torch.autograd.grad

    def counted(loss, inputs, **more):
        asked.append(sum(t.numel() for t in inputs if isinstance(t, torch.Tensor)))
        return grad(loss, inputs, **more)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    whole, at_once = kappas(), max(asked)
    asked.clear()
    monkeypatch.setattr(sys.modules["loopscale.diagnosis.gradients"], "_MOST_FORMED", 16 * 48 * 4)
    parted = kappas()
    assert max(asked) < at_once / 3 and sum(size > 0 for size in asked) >= 3
    assert any("self_attn" in name for name in whole) and any("linear1" in name for name in whole)
    assert parted == pytest.approx(whole, rel=1e-5)
