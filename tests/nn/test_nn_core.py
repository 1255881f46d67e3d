"""Laws of the module that owns the loop: names, recomputation, gradient through the last visits, one compiled body."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from loopscale import LoopedTransformer, ModelConfig, UserError
from loopscale.nn import LoopedCore, Recompute

TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def make(**changes):
    return LoopedTransformer(ModelConfig(**{"vocab_size": 50, "width": 32, "head_dim": 16, "layers": 2, **changes}))


def gradients(model, loops=None):
    model.zero_grad()
    model(TOKENS, loops=loops).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_parameters_keep_their_names():
    model = make()
    assert isinstance(model.core, LoopedCore)
    assert "core.1.mlp.down.weight" in dict(model.named_parameters())
    assert len(model.core) == len(list(model.core)) == 2 and model.core[-1] is model.core[1]


@pytest.mark.parametrize(
    "recompute", [Recompute(1), Recompute(3), Recompute(1, keep=1), Recompute(1, 2), Recompute(2, 2)]
)
@pytest.mark.parametrize("loops", [1, 2, 7])
def test_recomputation_changes_no_gradient(recompute, loops):
    model = make()
    expected = gradients(model, loops)
    model.core.recompute = recompute
    for name, gradient in gradients(model, loops).items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("recompute", [Recompute(), Recompute(1), Recompute(2), Recompute(1, 3), Recompute(1, 1)])
def test_the_number_of_visits_computed_again_is_the_stated_one(recompute):
    model, visits = make(layers=1), []
    model.core[0].attention_norm.register_forward_pre_hook(lambda *_: visits.append(1))
    model.core.recompute = recompute
    gradients(model, 9)
    # torch stops recomputing as soon as it has what it needs, which is at the end of a visit, not before.
    assert len(visits) == 9 + recompute.extra_visits(9)


def test_under_a_limit_the_streams_kept_do_not_grow():
    def kept(loops):
        """The most streams alive at once, counted through the entries of checkpoints."""
        model, alive, most = make(layers=1), set(), [0]
        model.core.recompute = Recompute(1, keep=4)
        model.core[0].attention_norm.register_forward_hook(lambda m, args, out: note(args[0]))

        def note(x):
            import weakref

            key = id(x)
            alive.add(key)
            weakref.finalize(x, alive.discard, key)
            most[0] = max(most[0], len(alive))

        gradients(model, loops)
        return most[0]

    assert kept(40) <= kept(5) + 3


def test_the_gradient_goes_through_the_last_visits_only():
    model, loops, k = make(gradient_visits=2), 5, 2
    full = make()
    assert torch.equal(model(TOKENS), full(TOKENS))
    got = gradients(model, loops)
    # By hand: three visits without a gradient, the stream's entry reached along the skip path, two visits with one.
    full.zero_grad()
    from loopscale.nn.layers import rotary

    rotation, scale = rotary(torch.arange(12), 16), full.residual_scale(loops)
    entry = full.embedding(TOKENS)
    with torch.no_grad():
        reached = entry
        for _ in range(loops - k):
            for block in full.core:
                reached = block(reached, rotation, scale, 1.0)
    x = reached + entry - entry.detach()
    for _ in range(k):
        for block in full.core:
            x = block(x, rotation, scale, 1.0)
    full.read(x).square().mean().backward()
    for name, p in full.named_parameters():
        torch.testing.assert_close(got[name], p.grad, msg=name)


def test_as_many_visits_with_gradient_as_loops_is_the_full_gradient():
    expected = gradients(make(), 3)
    for k in (3, 9):
        for name, gradient in gradients(make(gradient_visits=k), 3).items():
            assert torch.equal(gradient, expected[name]), name


def test_one_compiled_body_serves_every_number_of_loops_and_every_layer():
    torch._dynamo.reset()
    model, eager, counter = make(layers=3, prelude=1), make(layers=3, prelude=1), CompileCounter()
    model.core.compile_body(backend=counter)
    for loops in (4, 1, 2, 9, 4):
        torch.testing.assert_close(model(TOKENS, loops=loops), eager(TOKENS, loops=loops))
    assert counter.frame_count == 1
    model(TOKENS[:, :7])
    assert counter.frame_count == 2  # another length is another shape: once


def test_a_compiled_model_can_be_copied():
    model = make()
    model.core.compile_body(backend="eager")
    assert torch.equal(copy.deepcopy(model)(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: Recompute(-1), "recompute.every must be 0"),
        (lambda: Recompute(1, keep=0), "recompute.keep must be at least 1 stream"),
        (lambda: LoopedCore([], gradient_visits=0), "gradient_visits must be at least 1"),
        (lambda: ModelConfig(gradient_visits=0), "gradient_visits must be a whole number of at least 1"),
    ],
)
def test_mistakes_get_a_sentence(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)
