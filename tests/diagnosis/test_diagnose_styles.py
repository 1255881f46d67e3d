"""Looped models written independently of the tool, in many styles: every truth is found, nothing else is said."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import jsonschema
import numpy
import pytest
import torch

from loopscale import UserError
from loopscale.diagnosis import diagnose, diagnosis_schema

sys.path.insert(0, str(Path(__file__).parent))
import looped_habits as habits
import looped_states as states
import looped_styles as styles

TRUNCATED = {"truncated-gradient"}  # the first visits run without gradients, on purpose
SAMPLED = {*TRUNCATED, "train-eval-differ"}  # and N is drawn in training
NONE, SQRT, NORM, NESTED = {"unscaled-residual"}, {"sqrt-scaled"}, {"norm-bounded"}, {"nested-skip"}

# name: (module, codes, law over the visits or None where it is not the point, visits, layers)
CASES = {
    "nano_none": (styles, NONE, "linear", 8, 2),
    "nano_looped": (styles, set(), "bounded", 8, 2),
    "nano_sqrt": (styles, SQRT, None, 8, 2),
    "nano_gpt2_on_top": (styles, {"double-depth-scale"}, "bounded", 8, 2),
    "nano_nested": (styles, NESTED, "exponential", 8, 2),
    "nano_train_dropout": (styles, NONE, "linear", 8, 2),
    "nano_one_loop": (styles, {"not-looped"}, None, 1, None),
    "ut_post": (styles, NORM, "bounded", 6, 1),
    # Its time signals, another one at every visit, keep the stream growing (2.95) when the branches are set right.
    "ut_pre": (styles, NONE | {"unscaled-injection"}, None, 6, 1),
    "huginn": (styles, NORM | TRUNCATED, "bounded", 8, 2),
    "ouro": (styles, NORM, "bounded", 4, 2),
    "ouro_nofinal": (styles, NONE, "linear", 8, 2),
    "parcae": (styles, NORM, "bounded", 8, 1),
    "parcae_one": (styles, {"marginal-decay", "unscaled-injection"}, "linear", 8, 1),
    "deq": (styles, NORM, "bounded", 12, 1),
    "trm": (styles, NORM | TRUNCATED, "bounded", 15, 2),
    "inject_add": (styles, {"unscaled-injection"}, "linear", 12, 1),
    "inject_zero_add": (styles, {"unscaled-injection"}, "linear", 12, 1),
    "inject_scaled": (styles, set(), "bounded", 12, 1),
    "layerwise_none": (styles, NONE, "linear", 5, 3),
    "layerwise_ok": (styles, set(), "bounded", 5, 3),
    "three_layers_none": (styles, NONE, "linear", 5, 3),
    "repeat_none": (styles, NONE, "linear", 6, 1),
    "repeat_ok": (styles, set(), "bounded", 6, 1),
    "repeat_seq": (styles, NONE, "linear", 7, 1),
    "deepcopy_untied": (styles, {"untied"}, None, 1, None),
    "kw_required": (styles, set(), "bounded", 4, 1),
    "kw_required_none": (styles, NONE, "linear", 4, 1),
    "env_none": (styles, NONE, "linear", 5, 1),
    "dataclass_out": (states, NONE, "linear", 6, 1),
    "dataclass_out_ok": (states, set(), "bounded", 6, 1),
    "zero_none": (states, {"dead-branch", *NONE}, None, 6, 1),
    "zero_ok": (states, {"dead-branch"}, "bounded", 6, 1),
    # Without 1/N: in plain torch four steps of AdamW move the stream by 0.0032, 0.0065, 0.0130 of itself at N = 4, 8, 16.
    "rezero": (states, {"dead-branch", *NONE}, "bounded", 8, 1),
    "layerscale": (states, set(), "bounded", 8, 1),
    "pervisit_gates": (states, set(), "bounded", 6, 1),
    "addcmul_none": (states, NONE, "linear", 6, 1),
    "post_plain": (states, NORM, "bounded", 6, 2),
    "post_deepnorm": (states, NORM, "bounded", 6, 2),
    "post_deeploop": (states, NORM, "bounded", 6, 2),
    "conv_none": (states, NONE, "linear", 8, 1),
    "conv_ok": (states, set(), "bounded", 8, 1),
    "gru": (states, NORM, "bounded", 16, 1),
    "ssm": (states, NORM, "bounded", 16, 1),
    "moe_none": (states, NONE, "linear", 6, 1),
    "moe_ok": (states, set(), "bounded", 6, 1),
    "functional_none": (states, NONE, "linear", 6, 1),
    "ckpt_none": (states, NONE, "linear", 6, 1),
    "ckpt_re_none": (states, NONE, "linear", 6, 1),
    "ckpt_ok": (states, set(), "bounded", 6, 1),
    "bf16_none": (states, NONE, "linear", 8, 1),
    "bf16_absorbed": (states, {"bf16-absorbed"}, "bounded", 64, 1),
    "cache_none": (states, NONE, "linear", 5, 2),
    "cache_ok": (states, set(), "bounded", 5, 2),
    "frozen_none": (states, NONE, "linear", 5, 2),
    "compiled_none": (states, NONE, "linear", 6, 1),
    "compiled_inner": (states, NONE, "linear", 6, 1),
    "wrappers_none": (states, NONE, "linear", 6, 1),
    "wrappers_ok": (states, set(), "bounded", 6, 1),
    "none_out": (states, NONE, "linear", 4, 1),
    "loopformer": (states, NONE, "linear", 8, 1),
    "albert_groups": (states, NORM, "bounded", 4, 2),
    "prelude_coda_none": (states, NONE, "linear", 6, 2),
    "prelude_coda_ok": (states, set(), "bounded", 6, 2),
    "momentum_ok": (states, set(), "bounded", 8, 1),
    "interp": (states, NORM, "bounded", 8, 1),
    "mlp_plain": (states, {"not-looped"}, None, 1, None),
    "vit_plain": (states, {"not-looped"}, None, 1, None),
    "siamese": (states, {"not-looped"}, None, 1, None),
    "tied_emb": (states, {"not-looped"}, None, 1, None),
    "inplace_none": (habits, NONE, "linear", 8, 1),
    "inplace_ok": (habits, set(), "bounded", 8, 1),
    "setitem_none": (habits, NONE, "linear", 8, 1),
    "setitem_ok": (habits, set(), "bounded", 8, 1),
    "encdec": (habits, NONE, "linear", 6, None),
    "ode": (habits, set(), "bounded", 10, 1),
    "mha_none": (habits, NONE, "linear", 6, 1),
    "mha_ok": (habits, set(), "bounded", 6, 1),
    "mha_sqrt": (habits, SQRT, None, 16, 1),
    "skip_end_ok": (habits, set(), "bounded", 8, 1),
    "nested_scaled": (habits, set(), "bounded", 8, 1),
    "nested_half": (habits, NESTED, "exponential", 8, 1),
    "act": (habits, NORM, "bounded", 8, 1),
    "ngpt": (habits, NORM, "bounded", 8, 1),
    "parallel_none": (habits, NONE, "linear", 8, 1),
    "parallel_ok": (habits, set(), "bounded", 8, 1),
    "einsum_none": (habits, NONE, "linear", 6, 1),
    "einsum_ok": (habits, set(), "bounded", 6, 1),
    "lora_none": (habits, NONE, "linear", 6, 1),
    "lora_ok": (habits, set(), "bounded", 6, 1),
    "sig_decay_one": (habits, {"marginal-decay"}, "bounded", 10, 1),
    "sig_decay_ok": (habits, NORM, "bounded", 10, 1),
    "sampled_ok": (habits, SAMPLED, "bounded", 8, 1),
    "sampled_sqrt": (habits, SQRT | SAMPLED, None, 8, 1),
    "nested_cfg": (habits, NONE, "linear", 6, 1),
    "two_loops": (habits, NONE, None, 6, 2),
    "autocast_none": (habits, NONE, "linear", 6, 1),
    "only_mlp_scaled": (habits, NONE, "linear", 8, 1),
    "overflow": (habits, {"nonfinite", *NONE}, "exponential", 40, 1),
    "nonorm_none": (habits, NONE, "exponential", 8, 1),
    "nonorm_ok": (habits, set(), "bounded", 8, 1),
}
# What the mechanisms rest on; the others run with the slow tests.
QUICK = set(
    "nano_looped layerwise_ok parcae_one inject_add deepcopy_untied conv_none ckpt_none wrappers_ok interp siamese "
    "inplace_none setitem_ok two_loops overflow sampled_sqrt".split()
)
SCHEMA = diagnosis_schema()


def _cases():
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in CASES]


def _bits(model):
    """All that must be the same afterwards."""
    model = getattr(model, "_orig_mod", model)
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        torch.random.get_rng_state(),
        random.getstate(),
        numpy.random.get_state()[1].copy(),
    )


def _same(one, other):
    if isinstance(one, dict):
        return all(_same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, numpy.ndarray):
        return bool((one == other).all())
    if isinstance(one, list):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("name", _cases())
def test_truth_is_found_and_the_model_left_alone(name):
    source, codes, law, visits, layers = CASES[name]
    torch.manual_seed(0)
    model = getattr(source, name)()
    some = [p for i, p in enumerate(model.parameters()) if i % 3 == 1]
    for parameter in some:
        parameter.grad = torch.ones_like(parameter)
    before = _bits(model)
    found = diagnose(model, products=0)
    for part, after in zip(before, _bits(model), strict=True):
        assert _same(part, after)
    assert found.codes == codes, found.text()
    assert (found.loops, found.looped) == (visits, visits > 1)
    assert found.tied == (visits > 1 and "untied" not in codes)
    assert layers is None or found.layers == layers
    assert law is None or found.growth == law, found.details["norms"]
    jsonschema.validate(found.to_json(), SCHEMA)


def test_cycles_within_cycles_can_be_set():
    found = diagnose(styles.trm(), products=8)
    assert found.loops_argument == "H_cycles" and found.details["over_loops"]["loops"] == [5, 15]


def test_a_dict_may_be_the_one_argument():
    assert diagnose(habits.dict_in(), {"x": torch.randn(2, 5, 7)}, products=8).codes == NONE
    with pytest.raises(UserError, match="pass a batch"):
        diagnose(habits.dict_in())
