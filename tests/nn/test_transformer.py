"""Laws of the looped Transformer and of the parts that others use."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loopscale import (
    RULES,
    Depth,
    Loop,
    LoopedTransformer,
    ModelConfig,
    Role,
    ScaledResidual,
    UserError,
    residual_scale,
)
from loopscale.nn.layers import attend

PRE_NORM = [rule.name for rule in RULES.values() if rule.keeps_start]
TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def make(seed=0, **changes):
    return LoopedTransformer(
        ModelConfig(**{"vocab_size": 50, "width": 32, "head_dim": 16, "layers": 2, **changes}), seed
    )


@pytest.mark.parametrize("rule", PRE_NORM)
def test_one_loop_at_the_base_is_the_same_network_bitwise(rule):
    ours, reference = make(rule=rule, loops=1, base_layers=2), make(loops=1, base_layers=2)
    assert torch.equal(ours(TOKENS), reference(TOKENS))


def test_the_common_initialisation_shrinks_what_writes_into_the_stream_and_nothing_else():
    plain, shrunk = (dict(make(rule=rule, loops=8).named_parameters()) for rule in ("none", "gpt2-init"))
    for name, weight in plain.items():
        factor = (2 * 8 * 2) ** -0.5 if name.endswith(("attention.out.weight", "mlp.down.weight")) else 1.0
        torch.testing.assert_close(shrunk[name], factor * weight, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 1},
        {"qk_norm": True},
        {"tied_readout": True},
        {"prelude": 1, "coda": 1},
        {"rule": "deepnorm"},
        {"base_width": 16},
    ],
)
def test_every_choice_runs_and_every_parameter_learns(changes):
    model = make(loops=3, **changes)
    model(TOKENS).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@given(st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_no_strength_makes_the_core_the_identity(loops):
    model = make(strength=0.0)
    streams = model.run(TOKENS, loops, keep=True)
    assert all(torch.equal(stream, streams[0]) for stream in streams)


def test_it_is_causal():
    model = make(loops=4)
    embedded = model.embedding(TOKENS).detach().requires_grad_()
    model.embedding.forward = lambda tokens: embedded
    model(TOKENS)[:, 5].sum().backward()
    seen = embedded.grad.abs().sum(-1)
    assert (seen[:, 6:] == 0).all() and (seen[:, :6] > 0).all()


def test_grouped_queries_equal_repeated_heads():
    grouped, full = make(kv_heads=1), make(kv_heads=2)
    state = grouped.state_dict()
    for name in [key for key in state if "qk" in key]:
        query, key = state[name].split([32, 16])
        state[name] = torch.cat([query, key.repeat(2, 1)])
        state[name.replace("qk", "value")] = state[name.replace("qk", "value")].repeat(2, 1)
    full.load_state_dict(state)
    torch.testing.assert_close(full(TOKENS), grouped(TOKENS))


def test_the_stream_is_flat_over_loops_only_under_one_over_n():
    def growth(rule):
        model = make(rule=rule, width=64)
        return math.log(model.visit_rms(TOKENS, 32)[-1] / model.visit_rms(TOKENS, 4)[-1]) / math.log(8)

    assert abs(growth("looped")) < 0.1
    assert 0.3 < growth("sqrt") < 0.7
    assert growth("none") > 0.8


def test_loops_is_a_run_time_knob_and_follows_the_rule():
    model = make(loops=2)
    assert torch.equal(model(TOKENS, loops=5), make(loops=5)(TOKENS))
    assert model.residual_scale(8) == residual_scale(Depth(8, 2))


def test_an_unlooped_reference_written_by_hand_agrees():
    model = make(loops=3)
    from loopscale.nn.layers import rotary

    x, rotation, scale = model.embedding(TOKENS), rotary(torch.arange(12), 16), 1 / (3 * math.sqrt(2))
    for _ in range(3):
        for block in model.core:
            x = x + scale * block.attention(block.attention_norm(x), rotation)
            x = x + scale * block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(model.read(x), model(TOKENS))


def test_rotary_attention_depends_on_distance_alone():
    from loopscale.nn.layers import rotary, rotate

    q, k = torch.randn(2, 1, 1, 1, 16)
    at = rotary(torch.arange(40), 16)
    dots = [(rotate(q, at[:, i : i + 1]) * rotate(k, at[:, i + 3 : i + 4])).sum() for i in (0, 7, 30)]
    torch.testing.assert_close(torch.stack(dots), dots[0].expand(3), atol=1e-5, rtol=1e-5)


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    same, other = make(seed=1), make(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(same.core[0].mlp.down.weight, make(seed=1).core[0].mlp.down.weight)
    assert not torch.equal(same.core[0].mlp.down.weight, other.core[0].mlp.down.weight)


def test_logits_are_order_one_at_initialisation_over_width():
    for width in (32, 64, 128):
        for tied in (False, True):
            model = make(width=width, base_width=32, tied_readout=tied)
            # Under muP the readout shrinks with width at initialisation; it must never grow.
            assert model(TOKENS).std() < 1.5, (width, tied)


def test_roles_cover_every_parameter():
    model = make(prelude=1, coda=1)
    assert set(model.roles()) == {name for name, _ in model.named_parameters()}
    assert model.roles()["final_norm.weight"] is Role.OUTER_GAIN


def test_it_survives_deepcopy_assign_and_meta():
    model = make()
    expected = model(TOKENS)
    assert torch.equal(copy.deepcopy(model)(TOKENS), expected)
    with torch.device("meta"):
        other = make(seed=5)
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(TOKENS), expected)
    assert other.roles() == model.roles()


def test_compiled_body_equals_eager_and_more_loops_do_not_recompile():
    from torch._dynamo.testing import CompileCounter

    block, counter = make(loops=2).core[0], CompileCounter()
    compiled = torch.compile(block.forward, backend=counter, dynamic=False)
    x, rotation = torch.randn(1, 12, 32), torch.randn(2, 12, 8)
    for scale in (0.5, 0.25, 0.1):
        torch.testing.assert_close(compiled(x, rotation, torch.tensor(scale), 1.0), block(x, rotation, scale, 1.0))
    assert counter.frame_count == 1


class TestLoop:
    def stack(self, layers=3):
        torch.manual_seed(0)
        return nn.Sequential(*(ScaledResidual(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(layers)))

    def test_it_repeats_the_stack_with_the_rule_of_the_call(self):
        stack = self.stack()
        loop, x = Loop(stack, loops=4), torch.randn(2, 8)
        expected = x
        for _ in range(6):
            for layer in stack:
                expected = expected + 1 / (6 * math.sqrt(3)) * layer.branch(layer.norm(expected))
        torch.testing.assert_close(loop(x, loops=6), expected)

    def test_no_state_is_added(self):
        stack = self.stack()
        assert [name.removeprefix("stack.") for name in Loop(stack, 2).state_dict()] == list(stack.state_dict())

    def test_gradients_of_two_numbers_of_loops_do_not_mix(self):
        loop, x = Loop(self.stack(), loops=4), torch.randn(2, 8)
        (loop(x, loops=2).sum() + loop(x, loops=5).sum()).backward()
        both = [p.grad.clone() for p in loop.parameters()]
        loop.zero_grad()
        loop(x, loops=2).sum().backward()
        loop(x, loops=5).sum().backward()
        for parameter, expected in zip(loop.parameters(), both, strict=True):
            torch.testing.assert_close(parameter.grad, expected)

    @pytest.mark.parametrize(
        "make_loop,words",
        [
            (lambda s: Loop(nn.Sequential(nn.Linear(8, 8)), 2), "no ScaledResidual and no ScaledUpdate"),
            (lambda s: Loop([s], 2), "the stack is a list and must be a module: of blocks make nn.ModuleList(blocks)"),
            (lambda s: Loop(s, 0), "loops must be a whole number of at least 1, got 0"),
            (lambda s: ScaledResidual(None), "branch must be a module, such as nn.Linear"),
            (lambda s: Loop(s, 2, "loop"), "unknown rule 'loop': did you mean 'looped'?"),
            (lambda s: Loop(s, 2, "deepnorm"), "is for Post-LN networks"),
            (lambda s: Loop(nn.ModuleDict({"a": s}), 2), "cannot count the layers"),
            (lambda s: Loop(s, 2)(torch.randn(2, 8), loops=0), "loops must be a whole number"),
        ],
    )
    def test_mistakes_get_a_sentence(self, make_loop, words):
        with pytest.raises(UserError) as caught:
            make_loop(self.stack())
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        "make,words",
        [
            (lambda: ScaledResidual(8), "branch must be a module, such as nn.Linear"),
            (
                lambda: ScaledResidual(nn.Identity(), nn.LayerNorm),
                "norm must be a module, such as nn.LayerNorm(width), got",
            ),
            (lambda: ScaledResidual(nn.Identity(), scale="big"), "scale must be a number of at least 0, got 'big'"),
            (
                lambda: LoopedTransformer(ModelConfig())(torch.zeros(1, 1).long(), loop=2),
                "forward has no keyword 'loop': did you mean 'loops'?",
            ),
        ],
    )
    def test_what_is_no_part_of_a_block_or_call_gets_a_sentence(self, make, words):
        with pytest.raises(UserError) as caught:
            make()
        assert words in str(caught.value)

    def test_a_branch_that_changes_the_shape_is_named(self):
        with pytest.raises(ValueError, match=r"Linear turned \(2, 8\) into \(2, 4\)"):
            ScaledResidual(nn.Linear(8, 4))(torch.randn(2, 8))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"width": 48}, "width 48 is not a multiple of head_dim 32"),
        ({"head_dim": 7, "width": 7}, "head_dim must be even"),
        ({"kv_heads": 3}, "kv_heads 3 must divide the 2 heads"),
        ({"layers": 0}, "layers must be a whole number"),
        ({"rule": "Looped"}, "unknown rule 'Looped': did you mean 'looped'?"),
        ({"prelude": -1}, "prelude must be a whole number of at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be a positive number"),
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1"),
        ({"vocab_size": "64"}, "vocab_size must be a whole number of at least 1, got '64'"),
        ({"widht": 64}, "ModelConfig has no value 'widht': did you mean 'width'? known: "),
    ],
)
def test_a_config_that_makes_no_network_is_refused(change, words):
    with pytest.raises(UserError) as caught:
        ModelConfig(**change)
    assert words in str(caught.value)


def test_the_norm_is_torch_s_rms_norm():
    from loopscale.nn.layers import RMSNorm

    norm, x = RMSNorm(24), torch.randn(3, 5, 24, requires_grad=True)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    expected = nn.functional.rms_norm(x, (24,), norm.weight, eps=1e-6)
    torch.testing.assert_close(norm(x), expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (x, norm.weight)) for y in (norm(x), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm(x.bfloat16()), expected.bfloat16(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("width", [64, 256])
def test_a_tied_stream_enters_with_rms_one_as_an_untied_does(width):
    for tied in (False, True):
        model = LoopedTransformer(ModelConfig(vocab_size=97, width=width, base_width=64, tied_readout=tied))
        entered = []
        model.core.register_forward_pre_hook(lambda core, arguments, at=entered: at.append(arguments[0]))
        logits = model(torch.arange(97)[None])
        assert entered[0].square().mean().sqrt().item() == pytest.approx(1.0, abs=0.1)
        assert 0.3 < logits.std().item() < 3


def test_attention_in_bf16_on_a_cpu_is_that_of_fp32_rounded_once():
    q, k, v = (torch.randn(2, 4, 9, 16, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    taken = [x.clone().requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):  # which would send the kernel back to bf16
        out = attend(*taken, is_causal=True)
    whole = [x.float().requires_grad_() for x in (q, k, v)]
    expected = nn.functional.scaled_dot_product_attention(*whole, is_causal=True)
    assert torch.equal(out, expected.bfloat16())
    for ours, theirs in zip(
        torch.autograd.grad(out.float().square().sum(), taken),
        torch.autograd.grad(expected.bfloat16().float().square().sum(), whole),
        strict=True,
    ):
        assert torch.equal(ours, theirs.bfloat16())


@pytest.mark.parametrize("tokens", [torch.zeros(2, 5), torch.zeros(5, dtype=torch.long)])
def test_what_are_no_tokens_is_told_by_kind_and_shape(tokens):
    with pytest.raises(
        UserError, match=r"tokens are whole numbers of shape \(batch, time\), got (float32|int64) of shape"
    ):
        LoopedTransformer(ModelConfig(vocab_size=9, width=32))(tokens)
