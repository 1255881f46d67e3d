"""fold puts eps into the weights that end the branches: the same output, no multiplication left, and back bit by bit."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from adapt_architectures import MODELS, VISITS, batch_for, make
from adapt_models import llama, tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import loopscale as ls
from loopscale import LoopedTransformer, ModelConfig, UserError, attach, convert, detach, fold, unfold

X = tokens()


@torch.no_grad()
def run(model, batch, **more):
    return model(**batch, **more)[0] if isinstance(batch, dict) else model(batch, **more)


def exact(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def attached(name):
    model, more = make(name), {}
    if hasattr(model.config, "use_cache"):
        more = {"use_cache": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attach(model, loops=VISITS.get(name, 3))
    return model, {**batch_for(model), **more}


SAMPLE = ("Gemma 2", "Mixtral", "DeepSeek-V3", "GPT-2", "BERT", "Swin", "Mamba 2", "ALBERT")


@pytest.mark.parametrize("name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_the_same_output_and_back_bit_by_bit(name):
    model, batch = attached(name)
    state, before = copy.deepcopy(model.state_dict()), run(model, batch)
    folded = fold(model, batch=batch)
    assert not any(module._forward_hooks for module in model.modules()) and not exact(model, state)
    torch.testing.assert_close(run(model, batch), before, atol=1e-5, rtol=1e-4)
    folded.unfold()
    assert exact(model, state) and torch.equal(run(model, batch), before)


class Multiplications(TorchDispatchMode):
    """Counts products with a number or 0-dim tensor that is not 1."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "add":
            self.count += kwargs.get("alpha", 1) != 1
        if name == "mul":
            self.count += any(isinstance(a, (int, float)) and a != 1 for a in args)
            self.count += any(isinstance(a, torch.Tensor) and a.ndim == 0 for a in args)
        return func(*args, **kwargs)


@pytest.mark.parametrize("loops", [4, 8])
def test_the_house_model_has_no_multiplication_left(loops):
    model = LoopedTransformer(ModelConfig(layers=4, loops=4, prelude=1, coda=1, width=32))
    state, before = copy.deepcopy(model.state_dict()), run(model, X, loops=loops)
    with Multiplications() as seen:
        run(model, X, loops=loops)
    scaled = seen.count
    fold(model, loops=loops)
    with Multiplications() as seen:
        after = run(model, X)
    assert scaled - seen.count == 2 * (4 * loops + 2)
    # eps = 1 / (4 * 2) and so on are powers of two: nothing is rounded.
    assert torch.equal(after, before) and model.config.loops == loops
    for other in (1, loops + 1):
        with pytest.raises(UserError, match=f"folded for N = {loops}"):
            run(model, X, loops=other)
    unfold(model)
    assert exact(model, state) and torch.equal(run(model, X, loops=loops), before)
    assert model.config.rule == "looped" and run(model, X, loops=2).shape == before.shape


def test_a_folded_house_model_can_be_stored_and_loaded(tmp_path):
    from safetensors.torch import load_file, save_file

    model = LoopedTransformer(ModelConfig(layers=2, loops=3, width=32, strength=0.7))
    before = run(model, X)
    fold(model)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = LoopedTransformer(model.config)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(run(other, X), before)


def test_another_number_of_loops_is_folded_anew_and_never_twice():
    model = llama()
    handle = attach(model, loops=3)
    state = copy.deepcopy(model.state_dict())
    fold(model)
    with pytest.raises(UserError, match="folded for N = 3"):
        handle.set_loops(5)
    fold(model, loops=5)
    folded = model(X).logits
    unfold(model)
    assert exact(model, state) and handle.loops == 5
    torch.testing.assert_close(model(X).logits, folded, atol=1e-5, rtol=1e-4)
    fold(model)
    detach(model)
    assert exact(model, state)


def test_copies_unfold_themselves():
    foreign = llama()
    attach(foreign, loops=3)
    house = LoopedTransformer(ModelConfig(layers=2, loops=3, width=32))
    for model in (foreign, house):
        state = copy.deepcopy(model.state_dict())
        fold(model)
        twin, folded = copy.deepcopy(model), copy.deepcopy(model.state_dict())
        unfold(twin)
        assert exact(twin, state) and exact(model, folded)
        unfold(model)
        assert exact(model, state)


def test_a_folded_checkpoint_says_so(tmp_path):
    from transformers import LlamaForCausalLM

    model = llama()
    attach(model, loops=3)
    fold(model)
    expected = model(X).logits
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(X).logits, expected, rtol=0, atol=0)
    for apply in (lambda: attach(again, loops=3), lambda: ls.restore(again)):
        with pytest.raises(UserError, match="folded for N = 3"):
            apply()


def test_even_conversions_fold_and_damped_ones_say_why_not():
    model = llama(3)
    convert(model, 1, 3, loops=4, steps="even", strength=0.8)
    before = model(X, use_cache=False).logits
    fold(model)
    torch.testing.assert_close(model(X, use_cache=False).logits, before, atol=1e-5, rtol=1e-4)
    detach(model)
    convert(model, 1, 3, loops=4)
    with pytest.raises(UserError, match="steps='even'"):
        fold(model)


def test_shared_weights_are_scaled_once():
    model = llama(2)
    one, two = model.model.layers
    two.mlp.down_proj.weight = one.mlp.down_proj.weight
    attach(model, loops=3)
    state, before = copy.deepcopy(model.state_dict()), model(X).logits
    fold(model)
    torch.testing.assert_close(model(X).logits, before, atol=1e-5, rtol=1e-4)
    unfold(model)
    assert exact(model, state)


@pytest.mark.parametrize("change", ["train", "load"])
@pytest.mark.parametrize("house", [False, True])
def test_weights_trained_or_loaded_after_fold_are_unfolded_by_the_ratio(change, house):
    model = LoopedTransformer(ModelConfig(vocab_size=64, layers=2, loops=3, width=32)) if house else llama()
    if not house:
        attach(model, loops=3)
    fold(model)
    if change == "train":
        out = model(X)
        (out if house else out.logits).square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    else:
        torch.manual_seed(1)
        model.load_state_dict(
            {name: value + 0.01 * torch.randn_like(value) for name, value in model.state_dict().items()}
        )
    with torch.no_grad():
        expected = model(X) if house else model(X).logits
    unfold(model)
    with torch.no_grad():
        torch.testing.assert_close(model(X) if house else model(X).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_changed_weight_at_scale_zero_cannot_be_unfolded():
    model = llama()
    attach(model, loops=3, strength=0.0)
    fold(model)
    weight = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(UserError, match="changed after a fold at scale 0"):
        unfold(model)
    assert bool((weight == 1).all())


def test_what_cannot_be_folded_is_told():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return torch.tanh(self.inner(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Free(), Free()])

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return x

    model, x = Net(), torch.randn(3, 8)
    attach(model, loops=2, branches="blocks.*[0-9]", batch=x, check=False)
    state, before = copy.deepcopy(model.state_dict()), model(x)
    with pytest.raises(UserError, match=r"'blocks\.0' ends in no weight"):
        fold(model, batch=x)
    assert exact(model, state) and torch.equal(model(x), before)
    with pytest.raises(UserError, match="carries no scale"):
        fold(llama())
    with pytest.raises(UserError, match="is not folded"):
        unfold(llama())


def test_a_branch_that_cannot_be_called_again_is_told():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.calls = nn.Linear(8, 8), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 4:
                raise RuntimeError("the cache has other sizes")
            return self.fc(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Once(), Once()])

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return x

    model, x = Net(), torch.randn(3, 8)
    attach(model, loops=2, branches=["blocks.0", "blocks.1"], batch=x, check=False)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="cannot be called by itself"):
        fold(model, batch=x)
    assert exact(model, state) and sum(len(m._forward_hooks) for m in model.modules()) == 2
