"""Gradients that lie in a model are the user's: whatever a measurement writes over them is taken back."""

import torch
from torch import nn

from loopscale.probe.untouched import untouched


def test_gradients_come_back_as_the_same_tensors():
    model = nn.Linear(3, 3)
    mine = torch.randn(3, 3)
    model.weight.grad, model.bias.grad = mine, None
    with untouched(model):
        model.zero_grad(set_to_none=True)
        model(torch.randn(2, 3)).sum().backward()
    assert model.weight.grad is mine and model.bias.grad is None
