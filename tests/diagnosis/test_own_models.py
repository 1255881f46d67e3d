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
    found = diagnose(model, TOKENS, products=8)
    assert found.growth_over_loops == "bounded" and found.codes == set(), found.text()


def test_one_step_is_one_column():
    check = check_parameterization(GPT(), batch=TOKENS, loops=(1, 2), steps=1)
    assert check.table().count("1 step") == 1 and str(check) == check.table()
    assert all(len(line.split()) == 3 for line in check.table().splitlines()[1:-1])
    assert "2 steps" in check_parameterization(GPT(), batch=TOKENS, loops=(1, 2), steps=2).table()


def test_printing_a_diagnosis_shows_its_text():
    found = diagnose(ls.Loop(torch.nn.Sequential(ls.ScaledResidual(torch.nn.Linear(8, 8))), loops=4), products=8)
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

    found = diagnose(Model(), torch.randn(4, 8), products=8)
    assert found.layers == 1 and "modules 0..2 of `mlp`" in found.verdict, found.verdict


def test_a_for_around_a_loop_is_told_so_by_the_check():
    with pytest.raises(UserError, match="around a `Loop`, call it once") as caught:
        check_parameterization(GPT("both"), batch=TOKENS)
    assert "factory" not in str(caught.value)


def told(model):
    return diagnose(model, TOKENS, products=2)


def test_a_right_loop_is_healthy_and_base_layers_are_in_the_prescribed_scale():
    for rule in ({}, {"strength": 0.3}, {"rule": "looped-complete"}, {"base_layers": 2}):
        assert told(GPT(**rule)).codes == set(), rule
    found = told(GPT(base_layers=2))
    assert found.effective_scale == pytest.approx(0.25) and found.prescribed_scale == 0.25
    assert "prescribed 0.25 (strength 1, base_layers 2)" in found.text()
    assert told(GPT()).prescribed_scale == pytest.approx(0.17678, abs=1e-4)
    house = ls.LoopedTransformer(ls.ModelConfig(vocab_size=VOCABULARY, width=32, layers=2, loops=4, base_layers=2))
    found = told(house)
    assert found.prescribed_scale == 0.25 and found.effective_scale == pytest.approx(0.25)


def test_a_for_around_a_loop_is_named_as_that():
    (finding,) = told(GPT("both")).findings
    assert finding.code == "miscounted-loops" and finding.where == "`body`"
    assert "act 16 times in one pass, and `body` counts N = 4" in finding.evidence
    assert "loop(x, loops=16)" in finding.remedy


def test_a_loop_in_a_loop_counts_right():
    from torch import nn

    inner = ls.Loop(nn.Sequential(*(ls.ScaledResidual(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(2))), loops=3)
    assert diagnose(ls.Loop(inner, loops=4), torch.randn(3, 16), products=8).codes == set()


@pytest.mark.parametrize(("made", "codes"), [(4, set()), (8, {"miscounted-loops"}), (2, {"miscounted-loops"})])
def test_an_attached_model_whose_own_loops_were_changed(made, codes):
    model = GPT("plain")
    attach(model, loops=4, batch=TOKENS)
    model.n_loop = made
    found = told(model)
    assert found.codes == codes, found.text()
    if codes:
        assert f"handle.set_loops({made})" in found.findings[0].remedy


def test_a_scale_on_top_of_a_scale_is_found():
    model = GPT()
    attach(model, loops=4, batch=TOKENS, stacked="allow")
    (finding,) = told(model).findings
    assert finding.code == "double-depth-scale" and "eps = 0.03125 as measured and 0.1768" in finding.evidence
    assert told(GPT(more=1 / 4)).codes == {"double-depth-scale"}
    assert told(GPT(more=0.5)).codes == set()  # a gate, for all one can tell


def test_a_fixed_scale_is_not_said_to_fall():
    model = GPT("plain", loops=16, more=1 / (4 * 2**0.5))
    (finding,) = told(model).findings
    assert finding.code == "sqrt-scaled" and "N^-" not in finding.evidence
    assert "it is fixed and does not follow N" in finding.evidence


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (torch.zeros(2, 40, dtype=torch.long), r"40 long, 'wpe' has 32 rows, a context: give batch\[:, :32\]"),
        (torch.full((2, 8), VOCABULARY), "token 64 is beyond the 64 rows of 'wte': give tokens below 64"),
        (torch.zeros(8, dtype=torch.long), r"one axis and tokens are \[batch, time\]: give batch\[None\]"),
        (torch.full((8,), VOCABULARY), "token 64 is beyond the 64 rows of 'wte'"),
        (torch.zeros(2, 8), r"arguments for embedding\) \(tokens are whole numbers: give batch.long\(\)\)"),
    ],
)
def test_a_batch_that_a_table_cannot_serve(batch, says):
    for ask in (diagnose, check_parameterization):
        with pytest.raises(UserError, match=says) as caught:
            ask(GPT("plain"), batch=batch)
        assert "\n" not in str(caught.value)


def test_a_radius_that_has_not_settled_is_no_failure():
    found = diagnose(GPT(), TOKENS, products=8)
    assert found.details["spectrum_converged"] is False
    assert "(lower estimates)" in found.text() and "ran out" not in found.text()


def test_a_double_initialisation_is_found_from_two_layers_on_and_printed_in_one():
    """In one layer it cannot be told from Kaiming in, linear out; the limit is in docs/reference/footguns.md."""
    from torch import nn

    def shrunk(layers):
        model = GPT(layers=layers)
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.data.mul_((2 * layers) ** -0.5)
        return told(model)

    assert shrunk(2).codes == shrunk(4).codes == {"double-depth-scale"}
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    nn.init.kaiming_normal_(mlp[0].weight, nonlinearity="relu")
    nn.init.kaiming_normal_(mlp[2].weight, nonlinearity="linear")
    usual = diagnose(ls.Loop(ls.ScaledResidual(mlp, nn.LayerNorm(64)), loops=4), torch.randn(16, 64), products=8)
    for found in (shrunk(1), usual):
        assert found.codes == set() and found.details["init_ratio"] == pytest.approx(0.707, abs=0.01)
        assert "output projections are 0.7" in found.text()
    assert "weights  " not in told(GPT()).text()


def test_a_learned_factor_of_the_same_size_is_no_second_rule():
    from torch import nn

    class Scaled(nn.Module):
        def __init__(self, learned):
            super().__init__()
            self.mlp = nn.Linear(16, 16)
            self.register_parameter("gamma", nn.Parameter(torch.full((16,), 0.1)) if learned else None)

        def forward(self, x):
            return (self.gamma if self.gamma is not None else 0.1) * self.mlp(x)

    for learned, codes in ((True, set()), (False, {"double-depth-scale"})):
        torch.manual_seed(0)
        model = ls.Loop(ls.ScaledResidual(Scaled(learned), nn.LayerNorm(16)), loops=10)
        assert diagnose(model, torch.randn(3, 16), products=0).codes == codes
