"""A loop that hands on a stream and its momentum: the stream is followed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose


class Momentum(nn.Module):
    """v <- 0.9 v + 0.1 f(x + W e), x <- x + W e + v, and x is read: its momentum decays, the stream does not."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.inject = nn.Linear(16, 16, bias=False)

    def forward(self, e):
        x, v = torch.zeros_like(e), torch.zeros_like(e)
        for _ in range(12):
            read = x + self.inject(e)
            force = self.body(read)
            v = 0.9 * v + 0.1 * force
            x = read + v
        return x


def test_the_stream_is_followed_and_not_its_momentum():
    torch.manual_seed(0)
    found = diagnose(Momentum(), torch.randn(2, 5, 16), products=0)
    assert found.details["far_gain"] == pytest.approx(1.0, abs=0.01)
    assert found.growth == "linear" and "unscaled-injection" in found.codes and "norm-bounded" not in found.codes
