"""Images are made up in the size that a table of positions fits; where none fits, every message says what to give."""

import pytest
import torch
from torch import nn

import loopscale
from loopscale import UserError, diagnose


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Patches(nn.Module):
    """A looped network over patches of 8 x 8, with a table of positions and no scale."""

    def __init__(self, side):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 8, 8)
        self.positions = nn.Parameter(torch.zeros((side // 8) ** 2, 16))
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2) + self.positions
        for _ in range(8):
            for layer in self.layers:
                x = layer(x)
        return self.head(x.mean(1))


def test_a_table_of_positions_tells_the_size_of_the_images():
    (finding,) = diagnose(Patches(32), products=8).findings
    assert finding.code == "unscaled-residual" and "batch=" not in "".join(finding.lines)


def test_where_no_batch_can_be_made_up_the_remedy_takes_the_one_that_was_given():
    batch = torch.randn(2, 1, 40, 40)
    with pytest.raises(UserError, match=r"no made-up batch fits .*let the factory return \(model, batch\)"):
        diagnose(Patches(40))
    model = Patches(40)
    found = diagnose(model, batch, products=8)
    (line,) = found.findings[0].lines
    assert line.endswith(", batch=batch)")
    found.apply(model, batch)
    assert not diagnose(model, batch, products=8).findings
    written = Patches(40)
    eval(line, {"ls": loopscale, "model": written, "batch": batch})
    assert not diagnose(written, batch, products=8).findings
