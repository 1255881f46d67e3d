"""The labelled zoo: every truth is found, and nothing else is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose

sys.path.insert(0, str(Path(__file__).parent))
import blocks as own
import third_party as third

NONE, SQRT, NORM, NESTED = {"unscaled-residual"}, {"sqrt-scaled"}, {"norm-bounded"}, {"nested-skip"}

# name: (how to build it, the codes, the growth law or None where it is not the point, visits)
OWN = {
    "right": (lambda: own.Looped(), set(), "bounded", 8),
    "right, 3 layers": (lambda: own.Looped(layers=3), set(), "bounded", 8),
    "right, N = 2": (lambda: own.Looped(loops=2), set(), "bounded", 2),
    "right, kwarg": (lambda: own.KwargLoops("looped"), set(), "bounded", 8),
    "right, layer-wise": (lambda: own.Looped(layers=2, carry="layerwise"), set(), "bounded", 8),
    "right, raw weights": (lambda: own.Functional(scale=1 / 6), set(), "bounded", 6),
    "right, storage": (lambda: own.SharedStorage(rule="looped"), set(), "bounded", 6),
    "none": (lambda: own.Looped("none"), NONE, "linear", 8),
    "none, 2 layers": (lambda: own.Looped("none", loops=4, layers=2), NONE, "linear", 4),
    "none, N = 2": (lambda: own.Looped("none", loops=2), NONE, "linear", 2),
    "none, layer-wise": (lambda: own.Looped("none", layers=2, carry="layerwise"), NONE, "linear", 8),
    "none, raw weights": (lambda: own.Functional(), NONE, "linear", 6),
    "none, storage": (lambda: own.SharedStorage(), NONE, "linear", 6),
    "none, branch norms": (lambda: own.Looped("none", placement="sandwich"), NONE, "linear", 8),
    "sqrt(NL)": (lambda: own.Looped("sqrt", loops=16), SQRT, None, 16),
    "sqrt(N)": (lambda: own.Looped("sqrt_n", layers=2), SQRT, None, 8),
    "sqrt, kwarg": (lambda: own.KwargLoops("sqrt", layers=2), SQRT, None, 8),
    "nested": (lambda: own.Looped("none", carry="nested"), NESTED, "exponential", 8),
    "inject": (lambda: own.Looped(carry="inject"), {"unscaled-injection"}, "linear", 8),
    "inject, linear": (lambda: own.Looped(loops=12, carry="inject_linear"), {"unscaled-injection"}, "linear", 12),
    "inject, scaled": (lambda: own.Looped(carry="inject_scaled"), set(), "bounded", 8),
    "inject, branch only": (lambda: own.Looped(carry="inject_branch"), set(), "bounded", 8),
    "post": (lambda: own.Looped("none", placement="post"), NORM, "bounded", 8),
    "sandwich": (lambda: own.Looped("none", placement="sandwich", carry="final_norm"), NORM, "bounded", 8),
    "adapter": (lambda: own.Looped("none", carry="adapter"), NORM, "bounded", 8),
    "contractive": (lambda: own.Looped("none", carry="decay"), NORM, "bounded", 8),
    "decay at 1": (lambda: own.Looped(carry="marginal", decay=1.0), {"marginal-decay"}, None, 8),
    "zero": (lambda: own.zero_out(own.Looped()), {"dead-branch"}, "bounded", 8),
    "zero, none": (lambda: own.zero_out(own.Looped("none")), {"dead-branch", *NONE}, None, 8),
    "double": (lambda: own.shrink_out(own.Looped(), 8), {"double-depth-scale"}, "bounded", 8),
    "bf16": (lambda: own.Looped(loops=96).bfloat16(), {"bf16-absorbed"}, "bounded", 96),
    "bf16, few loops": (lambda: own.Looped(loops=4).bfloat16(), set(), "bounded", 4),
    "torch layer, pre": (lambda: third.torch_layer(True), NONE, "linear", 8),
    "torch layer, post": (lambda: third.torch_layer(False), NORM, "bounded", 8),
    "nested loops": (lambda: own.Recurrent(), NORM, "bounded", 6),
    "partly tied": (lambda: own.SharedStorage(rule="looped", partly=True), {"untied"}, "bounded", 6),
    "copies": (lambda: own.Untied(), {"untied"}, None, 1),
    "declared": (lambda: own.Untied(copies=False), {"untied"}, None, 1),
    "plain": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), {"not-looped"}, None, 1),
}

THIRD = {
    "llama": (lambda: third.llama(), NONE, "linear", 8),
    "llama, 64": (lambda: third.llama(64), NONE, "linear", 64),
    "llama, right": (lambda: third.llama(scale=1 / 8), set(), "bounded", 8),
    "llama, sqrt": (lambda: third.llama(scale=8**-0.5), SQRT, None, 8),
    "llama, nested": (lambda: third.llama(nested=True), NESTED, "exponential", 8),
    "qwen": (lambda: third.qwen(), NONE, "linear", 8),
    "qwen, right": (lambda: third.qwen(scale=1 / 8), set(), "bounded", 8),
    "gpt2": (lambda: third.gpt2(), NONE, None, 8),
    "gpt2, right": (lambda: third.gpt2(scale=1 / 8), set(), "bounded", 8),
    "gpt2, nested": (lambda: third.gpt2(nested=True), NESTED, "exponential", 8),
    "bert": (lambda: third.bert(), NORM, "bounded", 8),
    "vit": (lambda: third.vit(), NONE, "linear", 8),
    "vit, right": (lambda: third.vit(scale=1 / 8), set(), "bounded", 8),
    "mamba": (lambda: third.mamba(), NONE, None, 6),
    "mamba, right": (lambda: third.mamba(scale=1 / 6), set(), "bounded", 6),
    "albert": (lambda: third.albert(), NORM, "bounded", 6),
    "hrm-text": (lambda: third.hrm_text(), NORM | {"truncated-gradient"}, "bounded", 6),
    "llama, not looped": (lambda: third.plain_llama(), {"not-looped"}, None, 1),
    "gpt2, not looped": (lambda: third.plain_gpt2(), {"not-looped"}, None, 1),
}

X = {
    "tied": (lambda: third.x_tied(), NONE, "linear", 6),
    "ordered": (lambda: third.x_ordered(), NONE, "linear", 6),
    "sandwich": (lambda: third.x_sandwich(), NONE, "linear", 6),
    "looped": (lambda: third.x_looped(), NORM, "bounded", 4),
    "not looped": (lambda: third.x_plain(), {"not-looped"}, None, 1),
}


def agrees(case):
    build, codes, law, visits = case
    torch.manual_seed(0)
    found = diagnose(build(), products=0)
    assert found.codes == codes, found.text()
    assert found.loops == visits
    assert found.looped == (visits > 1)
    assert found.tied == (visits > 1 and "untied" not in codes)
    if law is not None:
        assert found.growth == law, (found.gain, found.details["norms"])


@pytest.mark.parametrize("name", OWN)
def test_own_blocks(name):
    agrees(OWN[name])


@pytest.mark.parametrize("name", THIRD)
def test_transformers_layers(name):
    pytest.importorskip("transformers")
    agrees(THIRD[name])


@pytest.mark.parametrize("name", X)
def test_x_transformers(name):
    pytest.importorskip("x_transformers")
    agrees(X[name])


def test_the_zoo_is_large_enough():
    assert len(OWN) + len(THIRD) + len(X) >= 40
