"""Padding: a place whose embedding is zero says nothing of the map, whatever norm and bias stand in the branch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose

BATCH = torch.tensor([[5, 9, 0, 7, 3, 0], [8, 2, 6, 4, 11, 1]])


class Padded(nn.Module):
    """A loop at 1/N over an embedding with a padding row; `mixes`: an earlier place reaches the later ones."""

    def __init__(self, norm, bias, mixes):
        super().__init__()
        self.table, self.loops, self.mixes = nn.Embedding(13, 16, padding_idx=0), 4, mixes
        self.norm, self.f, self.out = norm(16), nn.Linear(16, 16, bias=bias), nn.Linear(16, 13)

    def forward(self, tokens):
        x = self.table(tokens)
        for _ in range(self.loops):
            y = self.norm(x)
            y = y.cumsum(1) / torch.arange(1, 7)[:, None] if self.mixes else y
            x = x + torch.tanh(self.f(y)) / self.loops
        return self.out(x)


@pytest.mark.parametrize(("norm", "bias", "mixes"), [(nn.RMSNorm, False, False), (nn.LayerNorm, True, True)])
def test_padding_is_no_expansion(norm, bias, mixes):
    torch.manual_seed(0)
    found = diagnose(Padded(norm, bias, mixes), BATCH, products=16)
    assert found.spectral_radius < 1 + 2 / 4 and not found.at_least("warning"), found.text()


def test_an_expansion_beside_padding_is_still_seen():
    torch.manual_seed(0)
    model = Padded(nn.Identity, True, True)
    with torch.no_grad():
        model.table.weight.mul_(0.01)
        model.f.weight.mul_(9)
    found = diagnose(model, BATCH, products=16)
    assert found.spectral_radius > 1 + 2 / 4 and found.at_least("warning"), found.text()
