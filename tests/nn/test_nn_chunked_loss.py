"""The loss in chunks is the loss of whole logits: value and every gradient, whatever the readout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from loopscale.nn import LoopedTransformer, ModelConfig, chunked_cross_entropy
from loopscale.planning import Shape, memory
from loopscale.train import make_config
from loopscale.train.loop import train_step
from loopscale.train.training import evaluate, prepare


def gradients(model, loss):
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40),
    tied=st.booleans(),
    rule=st.sampled_from(["looped", "looped-complete"]),
    seed=st.integers(0, 9),
)
def test_loss_and_gradients_are_those_of_whole_logits(rows, tied, rule, seed):
    config = ModelConfig(vocab_size=37, width=32, base_width=16, head_dim=16, loops=3, tied_readout=tied, rule=rule)
    model = LoopedTransformer(config, seed=seed)
    tokens, targets = torch.randint(0, 37, (2, 2, 11), generator=torch.Generator().manual_seed(seed))
    whole = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    chunked = model(tokens, targets_BT=targets, loss_rows=rows)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)
    expected, got = gradients(model, whole), gradients(model, chunked)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_under_autocast_the_loss_stays_fp32():
    x, weight = torch.randn(6, 16), torch.randn(50, 16)
    targets = torch.arange(6)
    exact = float(F.cross_entropy(x.double() @ weight.double().T, targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(chunked_cross_entropy(x, weight, targets, 4)) == pytest.approx(exact, rel=1e-6)


def test_an_older_torch_is_told_so(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy")
    with pytest.raises(Exception, match=r"train\.loss_rows needs torch 2\.13"):
        chunked_cross_entropy(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(1, dtype=torch.long), 4)


def test_a_training_with_loss_rows_takes_the_same_steps():
    base = {
        "model": {"width": 32, "head_dim": 16, "loops": 2},
        "data": {"path": "synthetic:copy", "context": 16, "batch_size": 4},
        "train": {"steps": 4, "eval_batches": 2, "device": "cpu"},
    }
    plain, chunked = (prepare(make_config(base, sets)) for sets in ([], ["train.loss_rows=8", "train.accumulate=2"]))
    for _ in range(4):
        assert train_step(plain).loss == pytest.approx(train_step(chunked).loss, rel=1e-4)
    assert evaluate(plain) == pytest.approx(evaluate(chunked), rel=1e-4)


def test_the_plan_counts_only_the_logits_that_exist_together():
    shape = Shape(vocab_size=50000, width=64, batch=4, context=512)
    whole, chunked = memory(shape, 1), memory(Shape(**{**vars(shape), "loss_rows": 256}), 1)
    assert whole.logits == 12 * 2048 * 50000 and chunked.logits == 12 * 256 * 50000
