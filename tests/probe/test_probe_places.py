"""Calls are matched from pass to pass by their place in the code: it is the same in every pass."""

from __future__ import annotations

import textwrap

import torch
from torch import nn

from loopscale.probe import record


def test_a_call_made_by_a_builtin_keeps_its_place_while_python_warms_up(tmp_path):
    """Python 3.11 counts such a call from another instruction after a few turns."""
    path = tmp_path / "sums.py"
    path.write_text(
        textwrap.dedent("""
        def forward(self, x):
            states = [x]
            for _ in range(9):
                states.append(sum(states) + x + x)
            return states[-1]
        """)
    )
    fresh: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), fresh)
    model = type("Sums", (nn.Module,), {"forward": fresh["forward"]})()
    first, *later = ([(n.site, n.turn) for n in record(model, torch.ones(2))[0].nodes] for _ in range(3))
    assert all(places == first for places in later)
    assert len({site for site, _ in first if site is not None}) == 3  # the sum, and two additions on one line
