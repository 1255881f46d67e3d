"""Loops around blocks of your own: scales that follow N, tuples, nested loops, Post-LN; and what a mistake is told."""

import copy
import warnings

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from loopscale import Loop, PostNormResidual, ScaledResidual, ScaledUpdate, UserError, apply_branch_gain
from loopscale.parameterization import Depth, get_rule

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(8, 8)


def scales(model):
    return [float(part.scale) for part in model.modules() if hasattr(part, "set_scale")]


class Masked(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.linear = linear(seed)

    def forward(self, x, mask=None):
        y = self.linear(x)
        return y if mask is None else y * mask


class Counting(nn.Module):
    """A branch with a state: the running sum of a loss."""

    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x, total):
        y = self.linear(x)
        return y, total + y.square().mean()


class Own(nn.Module):
    """A forward of one's own, the scale in a ScaledUpdate."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.eps = nn.LayerNorm(8), linear(), ScaledUpdate()

    def forward(self, x):
        return x + self.eps(self.linear(self.norm(x)))


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda blocks: nn.Sequential(*blocks)])
def test_lists_of_blocks_take_extra_arguments(kind):
    loop = Loop(kind([ScaledResidual(Masked(seed)) for seed in range(2)]), loops=3)
    mask = torch.zeros(8)
    assert torch.equal(loop(X, mask), X) and torch.equal(loop(X, mask=mask), X)
    expected = X
    for _ in range(3):
        for seed in range(2):
            expected = expected + Masked(seed)(expected) / (3 * 2**0.5)
    torch.testing.assert_close(loop(X), expected)


def test_a_forward_of_ones_own_is_the_same_network():
    own, wrapped = Loop(Own(), 4, layers=1), Loop(ScaledResidual(linear(), nn.LayerNorm(8)), 4)
    assert torch.equal(own(X), wrapped(X)) and torch.equal(own(X, loops=9), wrapped(X, loops=9))


def test_a_tuple_is_carried_from_visit_to_visit():
    loop = Loop(nn.ModuleList([ScaledResidual(Counting())]), loops=4)
    y, total = loop(X, torch.zeros(()))
    expected, sums = X, torch.zeros(())
    for _ in range(4):
        update = linear()(expected)
        expected, sums = expected + update / 4, sums + update.square().mean()
    torch.testing.assert_close((y, total), (expected, sums))


def test_two_streams():
    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g, self.eps = linear(0), linear(1), ScaledUpdate()

        def forward(self, a, b):
            a = a + self.eps(self.f(b))
            return a, b + self.eps(self.g(a))

    loop = Loop(Coupled(), loops=2, layers=1)
    a, b = loop(X, 2 * X)
    first, second = X, 2 * X
    for _ in range(2):
        first = first + linear(0)(second) / 2
        second = second + linear(1)(first) / 2
    torch.testing.assert_close((a, b), (first, second))


def test_the_visits_of_a_loop_in_a_loop_multiply():
    inner = Loop(nn.Sequential(ScaledResidual(linear(0)), ScaledResidual(linear(1))), loops=2)
    outer = Loop(nn.Sequential(inner, ScaledResidual(linear(2))), loops=3)
    assert outer.layers == 3
    outer(X, loops=5)
    root = 3**0.5
    assert scales(outer) == pytest.approx([1 / (5 * 2 * root)] * 2 + [1 / (5 * root)])
    outer(X)
    assert scales(outer) == pytest.approx([1 / (3 * 2 * root)] * 2 + [1 / (3 * root)])


def test_three_deep():
    loop = Loop(Loop(Loop(ScaledResidual(linear()), 2), 3), 4)
    loop(X)
    assert scales(loop) == pytest.approx([1 / 24])


@pytest.mark.parametrize("rule", ["deeploop", "deepnorm"])
def test_post_norm_takes_alpha_and_beta_of_the_rule(rule):
    stack = nn.Sequential(*(PostNormResidual(linear(seed), nn.LayerNorm(8)) for seed in range(2)))
    loop, depth = Loop(stack, loops=4, rule=rule), Depth(4, 2)
    alpha, beta = get_rule(rule).skip_scale(depth).value, get_rule(rule).branch_gain(depth).value
    before = linear(0).weight.detach().clone()
    assert apply_branch_gain(loop) == ["0.branch.weight", "1.branch.weight"]
    torch.testing.assert_close(stack[0].branch.weight, before * beta)
    expected = X
    for _ in range(4):
        for block in stack:
            expected = block.norm(alpha * expected + block.branch(expected))
    torch.testing.assert_close(loop(X), expected)


def test_queries_and_keys_keep_their_size():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.value = linear(0), linear(1)

        def forward(self, x):
            return self.value(x) * self.q_proj(x).mean()

    loop = Loop(PostNormResidual(Attention(), nn.LayerNorm(8)), loops=2, rule="deeploop")
    assert apply_branch_gain(loop) == ["branch.value.weight"]


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda m: m.half(), lambda m: m.bfloat16().float(), lambda m: m.to("meta").to_empty(device="cpu")],
)
def test_a_scale_set_once_survives(change):
    model = change(
        nn.Sequential(ScaledResidual(linear(), scale=1e-5), PostNormResidual(linear(), linear(), 0.3, skip=7.0))
    )
    assert scales(model) == [pytest.approx(1e-5), pytest.approx(0.3)] and float(model[1].skip) == 7.0
    assert not any("scale" in name or "skip" in name for name in model.state_dict())


def test_the_stream_keeps_its_dtype():
    block = ScaledResidual(nn.Linear(8, 8), scale=0.5)
    assert block.bfloat16()(X.bfloat16()).dtype is torch.bfloat16
    assert block.double()(X.double()).dtype is torch.double
    block = ScaledResidual(linear(), scale=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(X).dtype is torch.float32


def test_a_compiled_stack_is_compiled_once_for_all_loops():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    loop = Loop(nn.Sequential(*(ScaledResidual(linear(seed), nn.LayerNorm(8)) for seed in range(2))), loops=2)
    x = X.clone().requires_grad_()  # as behind an embedding
    expected = {n: loop(x, loops=n) for n in (1, 2, 3, 7)}
    loop.stack = torch.compile(loop.stack, backend=counter)
    for n, value in expected.items():
        torch.testing.assert_close(loop(x, loops=n), value)
    assert counter.frame_count == 1


def test_a_whole_compiled_loop_is_the_loop():
    torch._dynamo.reset()
    loop = Loop(nn.ModuleList([ScaledResidual(Counting())]), loops=2)
    expected = loop(X, torch.zeros(()), loops=3)
    torch.testing.assert_close(torch.compile(loop, backend="eager")(X, torch.zeros(()), loops=3), expected)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, *args):
        return self.value(x)


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: Loop(nn.Linear(8, 8), 2, layers=1), "no ScaledResidual"),
        (lambda: Loop(nn.Linear(8, 8), 2, "deeploop", layers=1), "no PostNormResidual"),
        (lambda: Loop(Own(), 2), "pass layers="),
        (lambda: Loop(Own(), 2, layers=0), "layers must be"),
        (lambda: Loop(Own(), 2, layers=1)(X, loops=0), "loops must be"),
        (lambda: Loop(ScaledResidual(linear()), 2, "deepnorm"), "use PostNormResidual"),
        (lambda: Loop(PostNormResidual(linear(), linear()), 2), "takes 'deeploop'"),
        (lambda: Loop(Loop(ScaledResidual(linear()), 2, "none"), 2), "give both the same"),
        (lambda: apply_branch_gain(Loop(ScaledResidual(linear()), 2)), "leave this call out"),
        (
            lambda: apply_branch_gain(Loop(PostNormResidual(linear(), linear()), 2, "deeploop"), but=["*"]),
            "change but=",
        ),
        (lambda: ScaledResidual(nn.Linear(8, 4))(X), "turned (3, 5, 8) into (3, 5, 4)"),
        (lambda: ScaledResidual(Returns(lambda x: {"y": x}))(X), "returned dict"),
        (lambda: Loop(ScaledResidual(Returns(lambda x: (x, None))), 2)(X), "returned 2 values and was given 1"),
        (
            lambda: Loop(nn.ModuleList([ScaledResidual(linear()), Returns(lambda x: None)]), 2)(X),
            "Returns returned NoneType",
        ),
    ],
)
def test_mistakes_get_one_sentence(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_scaled_update_outside_a_loop_says_once_that_eps_is_one():
    eps, x = ScaledUpdate(), torch.ones(2)
    with pytest.warns(UserWarning, match="outside a Loop and without scale=, so its eps is 1"):
        assert torch.equal(eps(x), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eps(x)
        ScaledUpdate(scale=1.0)(x)
        Loop(Own(), 4, layers=1)(X)
