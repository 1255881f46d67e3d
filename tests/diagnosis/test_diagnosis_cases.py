"""Reported failures: what a right diagnosis says of each, fixed before it was run."""

from __future__ import annotations

import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose, diagnosis_schema

sys.path.insert(0, str(Path(__file__).parent))

from truths import CLEAN, NONE, Truth, built

CASES = {
    "universal_signals:make_model": Truth(NONE | {"unscaled-injection"}, "linear", 6, 1, ("where", "when", "halt")),
    "shared_attention_block:make_model": Truth(CLEAN, "bounded", 4),
    "only_experts_tied:make_model": Truth(CLEAN, None, 4),
    "hyper_streams:make_model": Truth(frozenset({"nested-skip"}), "exponential", 3, 2, ("2.9",)),
    "message_passing:make_model": Truth(frozenset({"expanding-map"}), "exponential", 6),
    "attach_layers:make": Truth(NONE, "linear", 8, 2, ("0.08839",)),
    "attach_layers:once": Truth(CLEAN, "bounded", 8, 2, ("measured 0.08839", "prescribed 0.08839")),
    "batch_is_injected:make": Truth(frozenset({"norm-bounded"}), "bounded", 6),
    "constant_injection:make": Truth(NONE | {"unscaled-injection"}, "linear", 8, 1, ("signal",)),
    "constant_injection:fixed": Truth(frozenset({"unscaled-injection"}), "linear", 8, 1, ("signal",)),
    "constant_injection:learned": Truth(frozenset({"unscaled-injection"}), "linear", 8, 1, ("signal",)),
    "routed_calls:make": Truth(NONE, "linear", 8, 1),
    "routed_calls:crash": Truth(NONE, "linear", 8, 1),
    "routed_calls:wrong": Truth(NONE, "linear", 8, 1),
    "layerwise:make": Truth(NONE, "linear", 4, 2, ("prescribed 0.1768", "0.1768 = 1/(N sqrt(L))")),
    "gain_of_one:make": Truth(CLEAN, "bounded", 8, 1),
    "blended_experts:make": Truth(NONE, "linear", 8, 1),
    "named_argument:make": Truth(NONE, "linear", 8, 1, ("N set by L",)),
    "named_argument:bare": Truth(NONE, "linear", 4, 1),
    "placeholder_loss:make": Truth(NONE, "linear", 8, 1, ("one step",)),
    "sdpa_strides:make": Truth(NONE, None, 6, 1),
    "sqrt_by_init:make": Truth(frozenset({"sqrt-scaled"}), "linear", 8, 2, ("initialis",)),
    "sqrt_by_init:fixed": Truth(frozenset({"double-depth-scale"}), "bounded", 8, 2),
    "private_by_design:prelude": Truth(CLEAN, "bounded", 4, 2, ("tied: yes",)),
    "private_by_design:constants": Truth(CLEAN, "bounded", 8, 2, ("tied: yes",)),
}


# What the mechanisms rest on; the others run with the slow tests.
QUICK = set(
    "universal_signals:make_model message_passing:make_model hyper_streams:make_model batch_is_injected:make "
    "constant_injection:fixed gain_of_one:make blended_experts:make private_by_design:prelude named_argument:make".split()
)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_a_reported_case_is_told_right(case):
    torch.manual_seed(0)
    model, batch = built(case)
    found = diagnose(model, batch, products=16)
    assert CASES[case].wrong(found) == [], found.text()
    jsonschema.validate(found.to_json(), diagnosis_schema())


def test_ten_thousand_visits_are_diagnosed_at_fewer_and_said_so():
    torch.manual_seed(0)
    model, _ = built("gain_of_one:make")
    model.loops = 10_000
    found = diagnose(model, products=0)
    assert "measured at loops = 32 in the place of 10000" in found.verdict and model.loops == 10_000


def test_the_same_model_gives_the_same_diagnosis_bit_for_bit():
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model, batch = built("gain_of_one:make")
        made.append(diagnose(model, batch, products=8).to_json())
    assert made[0] == made[1]


class Factor(nn.Module):
    """Right branches, two inputs added on one line, and a factor on the stream itself."""

    def __init__(self, carry=1.0, inject=0.0, eps=1 / 8, loops=8):
        super().__init__()
        self.table, self.norm, self.f = nn.Embedding(97, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.carry, self.inject, self.eps, self.loops = carry, inject, eps, loops

    def forward(self, tokens):
        x = e = self.table(tokens)
        for _ in range(self.loops):
            x = self.carry * x + self.eps * self.f(self.norm(x)) + self.inject * e
        return x


@pytest.mark.parametrize(
    ("given", "codes", "says"),
    [
        ({"carry": 1.25}, {"expanding-map"}, "multiplies it by 1.25 at every visit"),
        ({"inject": 0.5}, {"unscaled-injection"}, "left out, it takes 9"),
        ({"inject": 0.5, "eps": 1.0}, {"unscaled-injection", "unscaled-residual"}, "then no finding"),
        ({"inject": 1 / 8}, set(), "no fault found"),
    ],
)
def test_a_cause_is_what_brings_the_growth_back(given, codes, says):
    torch.manual_seed(0)
    found = diagnose(Factor(**given), torch.arange(20).view(2, 10), products=0)
    assert found.codes == codes, found.text()
    assert says in found.text(), found.text()
    assert all("then no finding" in f.tried for f in found.findings)
