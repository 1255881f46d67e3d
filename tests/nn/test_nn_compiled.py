"""A compiled body is compared with eager before it is used, refused when it differs, and serves every number of loops."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from loopscale import LoopedTransformer, ModelConfig, UserError
from loopscale.nn import Loop, Recompute, compile_checked
from loopscale.train import make_config
from loopscale.train.loop import train_step
from loopscale.train.training import prepare

TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
TINY = {
    "model": {"width": 32, "head_dim": 16, "loops": 4, "layers": 2},
    "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
    "train": {"steps": 8, "checkpoint_every": 0, "eval_every": 0, "device": "cpu"},
}


def make(**changes):
    return LoopedTransformer(ModelConfig(**{"vocab_size": 50, "width": 32, "head_dim": 16, "layers": 2, **changes}))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options", [{}, {"norm": "sandwich", "order": "layer"}, {"rule": "deepnorm", "injection": "linear"}]
)
def test_a_right_graph_is_accepted_and_leaves_no_gradients(options):
    model = make(**options)
    found = compile_checked(model, TOKENS, backend="aot_eager")
    assert model.core.compiled and found.gradient < 1e-4 and found.loss < 1e-5
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model(TOKENS, loops=7), make(**options)(TOKENS, loops=7))


def wrong_gradients(graph, inputs):
    """A compiler that drops every gradient of what it compiled but gives the right values."""

    def run(*args):
        with torch.no_grad():
            outputs = graph(*args)
        return tuple(o.detach().requires_grad_() if o.is_floating_point() else o for o in outputs)

    return run


def test_a_graph_with_the_right_loss_and_wrong_gradients_is_refused():
    model = make()
    with pytest.raises(UserError, match="compiled and eager differ"):
        compile_checked(model, TOKENS, backend=wrong_gradients)
    assert not model.core.compiled
    torch.testing.assert_close(model(TOKENS), make()(TOKENS))


def test_a_compiler_that_fails_gets_a_sentence():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    model = make()
    with pytest.raises(UserError, match="does not compile here"):
        compile_checked(model, TOKENS, backend=broken)
    assert not model.core.compiled and model(TOKENS).shape == (2, 12, 50)


@pytest.mark.parametrize("sampler", ['{kind="poisson", mean=3}', '{kind="grow", stages=[[0, 1], [0.4, 2], [0.8, 4]]}'])
def test_sampled_or_growing_loops_never_recompile(sampler, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr("loopscale.nn.transformer.torch.compile", _with_backend(counter))
    training = prepare(make_config(TINY, [f"model.sampler={sampler}", "train.compile=true"]))
    after_check = counter.frame_count
    drawn = [train_step(training).loops for _ in range(8)]
    assert len(set(drawn)) >= 3 and after_check == 1
    assert counter.frame_count == after_check


def _with_backend(backend):
    compile = torch.compile
    return lambda function, **options: compile(function, **{**options, "backend": backend})


def test_compiled_with_recomputation_and_the_last_visits_trains_as_eager():
    for changes, recompute in (({}, Recompute(1, 2)), ({"gradient_visits": 2}, Recompute())):
        losses = []
        for compiled in (False, True):
            torch._dynamo.reset()
            model = make(loops=5, **changes)
            model.core.recompute = recompute
            if compiled:
                compile_checked(model, TOKENS, backend="aot_eager")
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                loss = model(TOKENS).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_inductor_gives_eager_gradients_at_many_loops():
    model = make(loops=32)
    assert compile_checked(model, TOKENS).gradient < 1e-3


def test_what_is_no_looped_transformer_is_refused():
    with pytest.raises(UserError, match="expected a LoopedTransformer, got the class Loop: for a loop of yours"):
        compile_checked(Loop, TOKENS)
