"""What a newcomer's own GPT is told: by check_parameterization, by diagnose, and by the sentences of both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import loopscale as ls
from loopscale import UserError, attach, check_parameterization, diagnose

sys.path.insert(0, str(Path(__file__).parent))
from own_models import GPT, VOCABULARY

TOKENS = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))


def test_an_attached_model_is_flat_since_its_handle_follows_the_loops():
    model = GPT("plain")
    handle = attach(model, loops=4, batch=TOKENS)
    check = check_parameterization(model, batch=TOKENS, steps=2)
    assert check.passed, check.table()
    assert handle.loops == 4 and model.n_loop == 4
    found = diagnose(model, TOKENS, seconds=0.1)
    assert found.growth_over_loops == "bounded" and found.codes == set(), found.text()


def test_one_step_is_one_column():
    check = check_parameterization(GPT(), batch=TOKENS, loops=(1, 2), steps=1)
    assert check.table().count("1 step") == 1 and str(check) == check.table()
    assert all(len(line.split()) == 3 for line in check.table().splitlines()[1:-1])
    assert "2 steps" in check_parameterization(GPT(), batch=TOKENS, loops=(1, 2), steps=2).table()


def test_printing_a_diagnosis_shows_its_text():
    found = diagnose(ls.Loop(torch.nn.Sequential(ls.ScaledResidual(torch.nn.Linear(8, 8))), loops=4), seconds=0.1)
    assert str(found) == found.text() and "loop map" in str(found)


def test_modules_are_not_called_layers():
    from torch import nn

    mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            for _ in range(4):
                x = x + self.mlp(x) / 4
            return x

    found = diagnose(Model(), torch.randn(4, 8), seconds=0.1)
    assert found.layers == 1 and "modules 0..2 of `mlp`" in found.verdict, found.verdict


def test_a_for_around_a_loop_is_told_so_by_the_check():
    with pytest.raises(UserError, match="around a `Loop`, call it once") as caught:
        check_parameterization(GPT("both"), batch=TOKENS)
    assert "factory" not in str(caught.value)
