"""What a diagnosis says beside its findings: modules by visits, whether the answer settles, training mode, the page."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from loopscale import UserError
from loopscale.diagnosis import diagnose
from loopscale.diagnosis.causes import Facts, Shown
from loopscale.diagnosis.diagnosis import Symptom, finding
from loopscale.diagnosis.loopmap import LoopMap
from loopscale.diagnosis.loops import find_loops
from loopscale.diagnosis.setting import Setting
from loopscale.diagnosis.stream import follow
from loopscale.diagnosis.symptoms import unexplained
from loopscale.probe import untouched
from loopscale.report.diagnosis_page import page

TOKENS = torch.arange(20).view(2, 10)


class Looped(nn.Module):
    """`carry` scales the stream at every visit, `eps` the branch; `halt` is computed and thrown away."""

    def __init__(self, carry=1.0, eps=1.0, loops=4, drop=0.0):
        super().__init__()
        self.table, self.norm, self.f = nn.Embedding(97, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.halt, self.out, self.drop = nn.Linear(32, 1), nn.Linear(32, 97), nn.Dropout(drop)
        self.carry, self.eps, self.loops = carry, eps, loops

    def forward(self, tokens):
        x = self.table(tokens)
        for _ in range(self.loops):
            self.halt(x)
            x = self.carry * x + self.eps * self.drop(self.f(self.norm(x)))
        return self.out(x)


def told(**given):
    torch.manual_seed(0)
    return diagnose(Looped(**given), TOKENS, products=0)


@pytest.mark.parametrize(("given", "law"), [({"carry": 0.5, "eps": 0.01}, "settles"), ({}, "drifts")])
def test_whether_the_answer_settles_at_two_and_four_times_its_loops(given, law):
    found = told(**given)
    assert found.details["settling"]["law"] == law and f"run on    {law}" in found.text()
    assert list(found.details["settling"]["change"]) == ["8", "16"]


@pytest.mark.parametrize(("given", "still"), [({"carry": 0.3, "eps": 0.001}, 4), ({}, None)])
def test_from_which_loops_on_the_loss_stands_still(given, still):
    torch.manual_seed(0)
    keep = {"loss": lambda output, batch: output.square().mean().sqrt(), "data": [TOKENS]}
    found = diagnose(Looped(**given), TOKENS, products=0, loops_range=(1, 16), **keep)
    assert found.details["loops_range"]["still_from"] == still
    assert ("the loss stands still from 4 loops on" in found.text()) == (still is not None)


def test_growth_without_a_cause_tells_what_was_left_out():
    grown = Symptom("growth over the visits", 9.0, 2.0, True, told="gain 9")
    facts = Facts(8, 1, "`f`, 8 visits", 1 / 8, (), None, 1.0, shown=Shown(shares={"branches": 0.2, "injected": None}))
    (one,) = unexplained([grown], [], facts)
    assert one.evidence == "growth over the visits: gain 9; left out, of the growth go along: branches 20%"
    assert unexplained([grown], [finding("nested-skip", "f", "seen")], facts) == []


def test_modules_by_visits():
    rows = {row["module"]: row for row in told().details["modules"]}
    assert {name: row["visits"] for name, row in rows.items()} == {"table": 1, "halt": 4, "norm": 4, "f": 4, "out": 1}
    assert [name for name, row in rows.items() if row["unused"]] == ["halt"]
    assert rows["table"]["on"] == "the batch" and rows["f"]["on"] == "the stream"
    assert not any(row["private"] for row in rows.values())


def test_training_mode_on_request():
    found = told(drop=0.5)
    assert told(drop=0.5).to_json() == found.to_json()
    torch.manual_seed(0)
    model = Looped(drop=0.5)
    training = diagnose(model, TOKENS, products=0, training=True)
    assert training.gain != found.gain and model.training
    with pytest.raises(UserError, match=r"diagnose has no keyword .trainig."):
        diagnose(model, TOKENS, trainig=True)


def test_the_page_shows_symptoms_what_was_not_checked_and_modules():
    found = told()
    text = re.sub(r"<[^>]+>", " ", page("mine", found))
    for words in ("Symptoms", "growth over the visits", "Not checked", "products is 0", "Modules and visits", "halt"):
        assert words in text
    assert "its result is not used" in text and "then no finding" in text and "ls.attach(model, loops=4" in text
    json.dumps(found.to_json())


def test_a_product_with_the_last_visit_leaves_out_the_visits_before_it_and_stays_the_same():
    torch.manual_seed(0)
    model = Looped()
    with untouched(model, grads=True):
        setting = Setting(model, TOKENS)
        tape, _ = setting.run()
        (loop, *_) = find_loops(model, tape)
        stream = follow(tape, loop)
        short = LoopMap(setting, tape, stream.states[-2], stream.states[-1])
        assert [tape.nodes[i].op for i in sorted(short.hollow)].count("linear") >= 3
        direction = torch.randn(short.point.shape)
        products = [short.jvp(direction)]
        short.hollow = frozenset()
        products.append(short.jvp(direction))
    assert torch.equal(*products) and bool(products[0].any())
