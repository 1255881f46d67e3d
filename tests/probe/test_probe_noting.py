"""Notes are taken of every call, and nothing is left on the model or on a copy made meanwhile."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import loopscale as ls
from loopscale.probe import noting


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_copy_made_while_watched_has_no_hooks_and_is_not_watched():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    monitor = ls.Monitor(model, every=1)
    model(torch.ones(1, 4))
    twin = copy.deepcopy(model)
    assert hooks(twin) == 0
    twin(torch.ones(1, 4))
    assert len(monitor._seen.readings) == 3
    monitor.close()
    assert hooks(model) == 0


def test_a_note_may_replace_the_output_and_a_failing_pass_leaves_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with noting(model, lambda name, module, given, out: out * 0, ["0"]):
        assert torch.equal(model(torch.ones(1, 4)), model[1](torch.zeros(1, 4)))
        with pytest.raises(RuntimeError):
            model(torch.ones(1, 5))
    assert hooks(model) == 0 and bool(model(torch.ones(1, 4)).any())


def test_the_fused_encoder_path_is_off_inside_and_back_afterwards():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad(), ls.watch(layer) as seen:
        layer(torch.ones(1, 3, 8))
    assert seen.visits()["linear2"] == 1 and torch.backends.mha.get_fastpath_enabled()


def test_a_place_in_the_code_is_spelt_where_the_working_folder_is_gone(tmp_path, monkeypatch):
    from loopscale.probe import Site

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert str(Site("", "/far/model.py", 7, "add")) == "/far/model.py:7"
    monkeypatch.undo()
