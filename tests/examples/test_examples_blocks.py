"""The examples of own blocks: each is flat over loops under its rule, gets groups from its loops alone, and learns."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import loopscale as ls

FOLDER = Path(__file__).parents[2] / "examples" / "blocks"
# file, function, rule
MADE = [
    ("looped_vit", "make_model", "looped"),
    ("conv_resnet", "make_model", "looped"),
    ("linear_attention", "make_model", "looped"),
    ("moe", "make_model", "looped"),
    ("parallel", "make_model", "looped"),
    ("post_norm", "make_model", "deeploop"),
    ("layer_scale", "make_model", "looped"),
    ("layer_scale", "make_rezero", "looped"),
]
NAMES = [f"{file}-{function}" for file, function, _ in MADE]


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def checked(example, make, rule, loops=(1, 2, 8), steps=3):
    images, labels, *_ = example("digits").digits()
    classify = example("show").classify
    return ls.check_parameterization(
        make, rule, loops, batch=images[:24], steps=steps, loss=lambda output: classify(output, labels[:24])
    )


@pytest.mark.parametrize("file,function,rule", MADE, ids=NAMES)
def test_it_is_flat_over_loops(example, file, function, rule):
    check = checked(example, getattr(example(file), function), rule)
    assert check.passed, check.table()


@pytest.mark.parametrize("file", ["looped_vit", "conv_resnet", "linear_attention", "moe", "parallel"])
def test_without_the_rule_it_is_not(example, file):
    make = example(file).make_model
    check = checked(example, lambda loops: make(loops, rule="none"), "none")
    assert not check.passed, check.table()
    assert check.slopes["change_first"] > 0.25, check.table()


def test_gains_and_biases_spoil_post_norm(example):
    check = checked(example, example("post_norm").make_biased, "deeploop")
    assert check.slopes["change_first"] > 0.25, check.table()


@pytest.mark.parametrize("file,function,rule", MADE, ids=NAMES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(example, file, function, rule, optimizer):
    if file == "conv_resnet" and optimizer == "muon":
        pytest.skip("Muon takes matrices: this one has convolutions alone")
    model = getattr(example(file), function)(2)
    # AdamW's rate is that of the examples; Muon's is in other units.
    lr, steps = (2**-7, 40) if optimizer == "adamw" else (2**-5, 30)
    loss, _ = example("show").train(model, lr=lr, steps=steps, optimizer=optimizer)
    assert loss < 2.25  # log 10 = 2.303 without learning


@pytest.mark.parametrize("file,function,rule", MADE, ids=NAMES)
def test_loops_are_a_knob_and_names_do_not_change(example, file, function, rule):
    make = getattr(example(file), function)
    images = example("digits").digits()[0][:4]
    model, at_four = make(2), make(4)
    if file != "post_norm":  # its initial gain is that of the loops at construction
        torch.testing.assert_close(model(images, loops=4), at_four(images))
    at_four.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images, loops=4), at_four(images))
    assert set(ls.roles_of(model)) == {name for name, _ in model.named_parameters()}


def test_some_expert_is_less_aligned_than_a_dense_mlp_at_the_start(example):
    moe = example("moe")
    experts = [value for name, value in moe.alignment(sparse=True).items() if "experts" in name]
    dense = [value for name, value in moe.alignment(sparse=False).items() if "mlp" in name]
    assert len(experts) == 8 and len(dense) == 2
    assert min(experts) < min(dense) - 0.3 and sum(experts) / 8 < sum(dense) / 2


def test_two_loops_in_a_row_and_loops_in_loops_are_measured():
    torch.manual_seed(0)

    def block():
        branch = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        return ls.ScaledResidual(branch, nn.LayerNorm(16))

    def nested(loops, rule="looped"):
        torch.manual_seed(0)
        return ls.Loop(nn.Sequential(ls.Loop(block(), 2, rule), block()), loops, rule)

    def in_a_row(loops, rule="looped"):
        torch.manual_seed(0)
        return nn.Sequential(ls.Loop(block(), loops, rule), nn.Linear(16, 16), ls.Loop(block(), loops, rule))

    x = torch.randn(32, 16)
    for make in (nested, in_a_row):
        assert ls.check_parameterization(make, batch=x, steps=2).passed
        grown = ls.check_parameterization(lambda loops, make=make: make(loops, "none"), "none", batch=x, steps=2)
        assert grown.slopes["stream"] > 0.3, grown.table()


@pytest.mark.parametrize("loss", [lambda output: output, lambda output: 1.0, lambda output: output.detach().sum()])
def test_a_loss_that_is_none_gets_one_sentence(loss):
    model = ls.Loop(ls.ScaledResidual(nn.Linear(8, 8)), 2)
    with pytest.raises(ls.UserError, match="loss= returned") as caught:
        ls.check_parameterization(model, batch=torch.randn(4, 8), loss=loss)
    assert "\n" not in str(caught.value)


def test_the_study_takes_the_roles_from_the_loop(example, monkeypatch):
    from loopscale.train import parse_values, user_model

    module = example("vit_study")
    monkeypatch.delattr(module, "roles")
    size = {"width": 32, "layers": 1, "loops": 2, "base_layers": 1, "rule": "looped"}
    own = user_model("vit_study:make_model", parse_values({"model": size, "train": {"device": "cpu"}}, ()))
    assert own.roles["patch.weight"] is own.roles["position"] is ls.Role.EMBEDDING
    assert own.roles["core.stack.0.0.branch.out.weight"] is ls.Role.HIDDEN


def test_complex_weights_are_diagnosed_too():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat) / 4)

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(x) @ self.weight.T, n=x.shape[-1])

    torch.manual_seed(0)
    loop = ls.Loop(ls.ScaledResidual(Spectral(), nn.LayerNorm(6)), 4)
    found = ls.diagnose(loop, torch.randn(8, 6), products=0)
    assert found.loops == 4 and found.kappa is None and not found.at_least("warning")
