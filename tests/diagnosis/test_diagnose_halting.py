"""Loops that their own values end: said by running on, and left as they were where the loop is left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose

D = 16


class Halts(nn.Module):
    """Ends as soon as `sure` says so, at the `most`; or only skips those visits."""

    def __init__(self, sure, reads=True, most=9, skips=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.f, self.head = (
            nn.Embedding(20, D),
            nn.LayerNorm(D),
            nn.Linear(D, D),
            nn.Linear(D, 20),
        )
        self.sure, self.reads, self.most, self.skips = sure, reads, float(most), skips

    def forward(self, tokens):
        first = x = self.table(tokens)
        n = 0
        while n < self.most:
            n += 1
            if self.skips and bool(self.sure(x, first)):
                x = x * 1.0
                continue
            x = x + self.f(self.norm(x)) / 9
            if not self.skips and bool(self.sure(x, first)):
                break
        return self.head(x if self.reads else first)


def far(x, first):
    return (x - first).norm() > 0.25 * first.norm()


def told(model):
    return diagnose(model, torch.arange(20).view(2, 10), products=0)


def test_a_loop_that_its_values_end_is_said_and_is_not_idle():
    found = told(Halts(far))
    assert 2 <= found.loops < 9 and found.codes == {"halts-early"}, found.text()
    assert f"made {found.loops} visits on this batch and makes 9 where" in found.findings[0].evidence


def test_a_loop_that_is_ended_and_not_read_is_idle():
    assert told(Halts(far, reads=False)).codes == {"idle-loop", "halts-early"}


@pytest.mark.parametrize("sure", [lambda x, first: (x - first).norm() > 1e9, lambda x, first: x.isnan().all()])
def test_a_rule_that_ends_nothing_is_not_said(sure):
    found = told(Halts(sure))
    assert (found.loops, found.codes) == (9, set()), found.text()


def test_what_skips_a_visit_ends_no_loop():
    turns = iter(range(10**6))
    found = told(Halts(lambda x, first: torch.tensor(next(turns) % 9 in (3, 6)), skips=True))
    assert (found.loops, found.codes) == (7, set()), found.text()


def test_a_loop_without_a_most_ends_where_it_ends():
    found = told(Halts(lambda x, first: (x - first).norm() > 0.1 * first.norm(), most=float("inf")))
    assert "idle-loop" not in found.codes
