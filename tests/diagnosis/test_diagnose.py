"""Laws of the diagnosis: it changes nothing, measures what is known elsewhere, and answers bad input with one sentence."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from loopscale import UserError
from loopscale.diagnosis import Monitor, check_parameterization, diagnose, leading_eigenvalues, trainer_callback
from loopscale.nn import Loop, LoopedTransformer, ModelConfig, ScaledResidual
from loopscale.probe import watch

sys.path.insert(0, str(Path(__file__).parent))
import blocks as own

KEYS = {
    "looped",
    "loops",
    "tied",
    "growth",
    "gain",
    "growth_over_loops",
    "effective_scale",
    "prescribed_scale",
    "kappa",
    "spectral_radius",
    "findings",
    "verdict",
}


def model(rule="looped", loops=4, layers=2):
    return LoopedTransformer(ModelConfig(vocab_size=17, width=32, layers=layers, loops=loops, rule=rule))


def test_the_model_is_left_bit_identical():
    subject = own.Looped("none", layers=2).train()
    subject.layers[0].eval()
    subject.register_buffer("count", torch.zeros(3))
    subject.layers[1].mlp.up.weight.requires_grad_(False)
    subject.readout.weight.grad = grad = torch.ones_like(subject.readout.weight)
    before = copy.deepcopy(subject.state_dict())
    modes = [m.training for m in subject.modules()]
    flags = [p.requires_grad for p in subject.parameters()]
    plain = {k: v for k, v in vars(subject).items() if not k.startswith("_")}
    random = torch.random.get_rng_state()
    diagnose(subject, products=8)
    assert all(torch.equal(before[k], v) for k, v in subject.state_dict().items())
    assert modes == [m.training for m in subject.modules()]
    assert flags == [p.requires_grad for p in subject.parameters()]
    assert plain == {k: v for k, v in vars(subject).items() if not k.startswith("_")}
    assert subject.readout.weight.grad is grad and bool((grad == 1).all())
    assert all(p.grad is None for p in subject.parameters() if p is not subject.readout.weight)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.modules())
    assert torch.equal(random, torch.random.get_rng_state())


def test_buffers_that_forward_changes_are_put_back():
    class Counting(own.Functional):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    subject = Counting()
    diagnose(subject, products=8)
    assert float(subject.calls) == 0


def test_scale_growth_and_json():
    found = diagnose(model("looped", loops=8, layers=4), products=8)
    assert found.effective_scale == pytest.approx(0.0625, rel=1e-3)
    assert found.prescribed_scale == 0.0625
    assert (found.loops, found.layers, found.growth_over_loops, found.loops_argument) == (8, 4, "bounded", "loops")
    assert 1 < found.kappa <= 8
    data = json.loads(json.dumps(found.to_json()))
    assert data.keys() >= KEYS
    assert data["growth"] == "bounded" and data["looped"] is True and data["loops"] == 8


@pytest.mark.parametrize(("rule", "law"), [("none", "linear"), ("sqrt", "sqrt"), ("looped", "bounded")])
def test_growth_over_loops_is_that_of_the_rule(rule, law):
    assert diagnose(model(rule, loops=8), products=0).growth_over_loops == law


def test_an_unscaled_loop_grows_in_proportion_to_its_visits():
    gains = [diagnose(model("none", loops=n, layers=1), products=0).gain for n in (4, 16, 32)]
    assert 3 < gains[1] / gains[0] < 5 and 1.7 < gains[2] / gains[1] < 2.3


def test_a_nested_skip_doubles_at_every_visit():
    norms = diagnose(own.Looped("none", carry="nested"), products=8).details["norms"]
    assert norms[-1] / norms[-2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("size", [8, 64, 256])
@pytest.mark.parametrize("seed", range(4))
def test_spectral_radius_of_non_normal_maps_with_complex_pairs(size, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator) / size**0.5
    matrix += torch.triu(torch.randn(size, size, generator=generator), 1) / size**0.5
    matrix[:2] = matrix[:, :2] = 0
    radius = 1.2 * float(torch.linalg.eigvals(matrix).abs().max())
    matrix[:2, :2] = radius * torch.tensor([[0.28, -0.96], [0.96, 0.28]])
    matrix[0, 2:] = 0.3
    true = float(torch.linalg.eigvals(matrix.double()).abs().max())
    assert leading_eigenvalues(lambda v: matrix @ v, torch.zeros(size)).radius == pytest.approx(true, rel=0.02)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.loops = nn.Linear(size, size, bias=False), 3
            self.map.weight.data = matrix

        def forward(self, x):
            for _ in range(self.loops):
                x = self.map(x)
            return x

    found = diagnose(Linear(), torch.randn(2, size, generator=generator))
    assert found.spectral_radius == pytest.approx(true, rel=0.02)
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert found.details["singular_value"] == pytest.approx(largest, rel=0.02)


def test_kappa_matches_gradients_formed_visit_by_visit():
    torch.manual_seed(0)
    subject = own.Functional(loops=4, scale=0.25)
    batch = torch.randn(2, 5, 32)
    found = diagnose(subject, batch, products=8).details["kappa_by_parameter"]["w"]
    copies = [subject.w.detach().clone().requires_grad_() for _ in range(4)]
    x = batch
    for w in copies:
        hidden = nn.functional.relu(nn.functional.linear(nn.functional.rms_norm(x, (32,)), w))
        x = x + 0.25 * nn.functional.linear(hidden, subject.v.detach())
    direction = torch.randn(tuple(x.shape), generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((x * direction).sum(), copies)
    total = sum(grads).square().sum() / sum(g.square().sum() for g in grads)
    assert found == pytest.approx(float(total), rel=1e-3)


class Wrapped(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = own.Looped("none"), kind

    def forward(self, tokens):
        out = self.inner(tokens)
        return {"tuple": (out, None), "dict": {"logits": out}, "none": None}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "none"])
def test_outputs_of_any_kind(kind):
    found = diagnose(Wrapped(kind), products=8)
    assert found.codes == {"unscaled-residual"} and found.loops == 8
    assert (found.kappa is None) == (kind == "none")


def test_compiled_and_frozen_models():
    subject = own.Looped("none").requires_grad_(False)
    assert diagnose(torch.compile(subject), products=8).codes == {"unscaled-residual"}
    assert diagnose(subject, products=8).kappa is not None


def test_nonfinite_names_module_and_visit():
    subject = own.Looped("none")
    subject.layers[0].mlp.up.weight.data[0, 0] = float("nan")
    found = next(f for f in diagnose(subject, products=8).findings if f.code == "nonfinite")
    assert "layers.0.mlp.up.weight" in found.where

    class Overflow(own.Looped):
        def visit(self, x, e):
            return self.run(x) * 1e12

    found = next(f for f in diagnose(Overflow("none"), products=8).findings if f.code == "nonfinite")
    assert "visit" in found.evidence


@pytest.mark.parametrize(
    ("build", "batch", "says"),
    [
        (lambda: own.Looped(), "text", "the batch is a str"),
        (lambda: own.Looped(), torch.randn(2, 3), "cannot run on the batch"),
        (lambda: nn.ReLU(), None, "cannot tell what the model reads"),
        (lambda: own.Looped().to("meta"), None, "meta device"),
        (lambda: "text", None, "expected a torch.nn.Module"),
    ],
)
def test_bad_input_is_one_sentence(build, batch, says):
    with pytest.raises(UserError, match=says):
        diagnose(build(), batch)


def test_one_loop_is_said_to_be_one():
    found = diagnose(own.KwargLoops(loops=1), products=8)
    assert found.codes == {"not-looped"} and "n_loops" in found.verdict


def test_loops_argument_by_name():
    assert diagnose(own.Looped("sqrt"), loops_arg="loops", products=8).growth_over_loops is not None
    with pytest.raises(UserError, match="no argument, attribute or config value 'lops'"):
        diagnose(own.Looped(), loops_arg="lops")


def test_watch_reads_every_visit_and_removes_its_hooks():
    subject = own.Looped("none", loops=5)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with watch(torch.compile(subject)) as seen:
        subject(tokens)
    block = seen.of("layers.0")
    assert [r.visit for r in block] == [1, 2, 3, 4, 5]
    assert all(r.norm > 0 and r.update > 0 and r.ratio > 0 for r in block)
    with pytest.raises(RuntimeError, match="stop"), watch(subject):
        raise RuntimeError("stop")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.modules())
    with pytest.raises(UserError, match="nothing was collected"), watch(subject):
        pass


def test_monitor_samples():
    subject = own.Looped("none", loops=5)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with Monitor(subject, every=3) as monitor:
        for _ in range(7):
            subject(tokens)
            monitor.step()
    assert [sample.step for sample in monitor.samples] == [0, 3, 6]
    assert len(monitor.samples[0].norms["layers.0"]) == 5 and monitor.samples[0].gain > 1
    assert not any(m._forward_hooks for m in subject.modules())


@pytest.mark.parametrize(("rule", "passed"), [("looped", True), ("sqrt", False), ("none", False)])
def test_check_parameterization_tells_rules_apart(rule, passed):
    made = check_parameterization(lambda loops: model(rule, loops, layers=1), rule, steps=4)
    assert made.passed is passed
    assert "slope" in made.table()
    assert check_parameterization(own.KwargLoops(rule), rule, steps=4).passed is passed


def test_the_trainer_callback_samples():
    pytest.importorskip("transformers")
    subject, tokens = own.Looped("none", loops=3), torch.zeros(1, 4, dtype=torch.long)
    callback = trainer_callback(every=2)
    callback.on_train_begin(None, None, None, model=subject)
    for _ in range(4):
        subject(tokens)
        callback.on_step_end(None, None, None)
    callback.on_train_end(None, None, None)
    assert [sample.step for sample in callback.samples] == [0, 2]
    assert not any(m._forward_hooks for m in subject.modules())


def test_loops_set_by_a_number_of_any_name():
    class Oddly(own.Functional):
        def __init__(self):
            super().__init__()
            self.T = self.loops
            del self.loops

        def forward(self, x):
            self.__dict__["loops"] = self.T
            return super().forward(x)

    assert diagnose(Oddly(), products=8).growth_over_loops == "linear"


def test_default_linear_layers_are_no_second_depth_rule():
    stack = nn.Sequential(*(ScaledResidual(own.Mlp(), nn.LayerNorm(own.WIDTH)) for _ in range(2)))
    found = diagnose(Loop(stack, loops=6), products=8)
    assert found.codes == set() and found.layers == 2
