"""attach scales branches of foreign models and nothing else; detach gives the model back bit by bit."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from adapt_models import bert, gpt2, llama, tokens, vit
from torch import nn

import loopscale as ls
from loopscale import UserError, attach, attachment, detach
from loopscale.adapt.branch_hook import hook_of
from loopscale.adapt.present_rules import DepthRuleWarning


def names(model):
    return [name for name, _ in model.named_parameters()], list(model.state_dict())


def untouched(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items()) and not any(
        module._forward_hooks for module in model.modules()
    )


def test_the_scale_is_the_rule_and_equals_scaled_weights():
    model, x = llama(), tokens()
    twin = copy.deepcopy(model)
    handle = attach(model, loops=4)
    assert handle.residual_scale == ls.residual_scale(ls.Depth(4, 2))
    with torch.no_grad():
        for layer in twin.model.layers:
            layer.self_attn.o_proj.weight.mul_(handle.residual_scale)
            layer.mlp.down_proj.weight.mul_(handle.residual_scale)
    torch.testing.assert_close(model(x).logits, twin(x).logits)


@pytest.mark.parametrize("make", [llama, vit])
def test_names_and_state_dict_stay_and_detach_is_bit_identical(make):
    model = make()
    x = tokens() if make is llama else torch.randn(2, 3, 16, 16)
    before, listed = model(x)[0], names(model)
    handle = attach(model, loops=8)
    assert names(model) == listed and not torch.equal(model(x)[0], before)
    handle.detach()
    assert torch.equal(model(x)[0], before) and untouched(model, model.state_dict())
    with attach(model, loops=8):
        assert not torch.equal(model(x)[0], before)
    assert torch.equal(model(x)[0], before)


def test_strength_one_over_eps_is_bit_identical_and_zero_is_the_identity():
    model, x = llama(), tokens()
    before = model(x).logits
    with attach(model, loops=1, base_layers=2):
        assert torch.equal(model(x).logits, before)
    with attach(model, loops=3, strength=0.0):
        inner = model.model
        assert torch.equal(inner(x)[0], inner.norm(inner.embed_tokens(x)))


def test_a_deepcopy_has_its_own_knob():
    model, x = llama(), tokens()
    attach(model, loops=8)
    twin, before = copy.deepcopy(model), model(x).logits
    assert torch.equal(twin(x).logits, before)
    attachment(twin).set_loops(1)
    assert torch.equal(model(x).logits, before) and not torch.equal(twin(x).logits, before)
    detach(twin)
    assert attachment(model).loops == 8


def test_it_survives_assign_and_meta():
    model, x = llama(), tokens()
    attach(model, loops=4)
    expected, state = model(x).logits, copy.deepcopy(model.state_dict())
    model.load_state_dict(state, assign=True)
    assert torch.equal(model(x).logits, expected)
    with torch.device("meta"):
        empty = llama()
    handle = attach(empty, loops=4)
    assert "meta" in handle.verified
    empty.load_state_dict(state, assign=True)
    empty.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    assert torch.equal(empty(x).logits, expected)
    hooks = sum(len(m._forward_hooks) for m in empty.modules())
    assert hooks == 4 and all(not p.is_meta for p in empty.parameters())
    moved = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    moved.load_state_dict(state)
    moved.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    assert torch.equal(moved(x).logits, expected)


def test_it_lowers_to_bfloat16_without_losing_the_scale():
    model = llama()
    attach(model, loops=3)
    model.bfloat16()
    assert (
        hook_of(model.model.layers[0].mlp).scale.dtype == torch.float32
        and model(tokens()).logits.dtype == torch.bfloat16
    )


@pytest.mark.parametrize("make", [llama, gpt2])
def test_changing_loops_never_recompiles(make):
    import torch._dynamo
    from torch._dynamo.utils import counters

    model, x = make(), tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = attach(model, loops=4)
    counters.clear()
    compiled = torch.compile(model, backend="eager")
    for loops in (4, 1, 2, 8, 16):
        handle.set_loops(loops)
        assert torch.equal(compiled(x).logits, model(x).logits)
    graphs = counters["stats"]["unique_graphs"]
    handle.set_loops(32)
    compiled(x)
    assert counters["stats"]["unique_graphs"] == graphs <= 2
    before = model(x).logits
    handle.detach()
    assert torch.equal(compiled(x).logits, model(x).logits) and not torch.equal(model(x).logits, before)


def test_layers_visited_once_get_no_n():
    model = llama(4)
    handle = attach(model, loops=8, once=["model.layers.0", "model.layers.3"])
    assert handle.layers == 2
    scales = [float(hook_of(layer.mlp).scale) for layer in model.model.layers]
    assert scales == pytest.approx([2**-0.5, 2**-0.5 / 8, 2**-0.5 / 8, 2**-0.5])


def test_post_norm_takes_the_skip_scale_and_a_pre_norm_rule_is_told():
    model, x = bert(), tokens()
    with pytest.warns(UserWarning, match="Post-LN"):
        handle = attach(model, loops=4)
    assert handle.post_norm and "norms alone" in handle.verified
    handle.detach()
    handle = attach(model, loops=4, rule="deeploop")
    alpha = ls.RULES["deeploop"].skip_scale(ls.Depth(4, 2)).value
    assert handle.residual_scale == pytest.approx(1 / alpha)
    ours, layer = model(x)[0], model.encoder.layer[0]
    captured = {}
    layer.register_forward_hook(lambda m, a, o: captured.update(x=a[0], y=o[0] if isinstance(o, tuple) else o))
    model(x)
    handle.detach()
    stream = captured["x"]
    attended = layer.attention.self(stream)[0]
    stream = layer.attention.output.LayerNorm(alpha * stream + layer.attention.output.dense(attended))
    expected = layer.output.LayerNorm(alpha * stream + layer.output.dense(layer.intermediate(stream)))
    torch.testing.assert_close(captured["y"], expected, atol=1e-5, rtol=1e-5)
    assert ours.isfinite().all()


def test_a_post_norm_rule_on_a_pre_norm_model_is_refused():
    with pytest.raises(UserError, match="pre-norm rule"):
        attach(llama(), loops=4, rule="deepnorm")


def test_gpt2s_own_depth_rule_is_seen():
    with pytest.warns(UserWarning, match=r"multiply them by (1\.9|2)"):
        attach(gpt2(2), loops=4)


class TinyBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.gate = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc(torch.relu(self.gate(self.norm(x))))


def test_a_block_visited_many_times_by_glob():
    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = TinyBlock()

        def forward(self, x, loops=3):
            for _ in range(loops):
                x = self.block(x)
            return x

    model, x = Looped(), torch.randn(4, 8)
    handle = attach(model, loops=3, branches="*.fc")
    stream = x
    for _ in range(3):
        # fc carries the hook: its output is f(x) / 3 already.
        stream = stream + model.block.fc(torch.relu(model.block.gate(model.block.norm(stream))))
    assert handle.layers == 1 and handle.residual_scale == 1 / 3
    torch.testing.assert_close(model(x), stream)
    scaled = model(x)
    handle.detach()
    assert not torch.allclose(model(x), scaled)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(branches="*.atention"), "matches no module.*did you mean 'attention'|matches no module"),
        (dict(branches=["*.self_attn", "*.self_attn.o_proj"]), "scaled twice"),
        (dict(branches="*.input_layernorm"), "not the identity|is not a branch"),
        (dict(branches="*.self_attn"), "not the identity"),
        (dict(branches=["*.self_attn", "*.gate_proj"]), "'model.layers.0.mlp.gate_proj' is not a branch"),
        (dict(branches=[nn.Linear]), "expected the names of modules, got the class Linear"),
        (dict(rule="loped"), "did you mean"),
        (dict(strength=-1.0), "strength"),
        (dict(loops=0), "loops must be"),
        (dict(once="nothing"), "matches no branch"),
        (dict(batch=torch.randn(2, 3)), "cannot run on the batch"),
    ],
)
def test_bad_input_gets_one_sentence_and_the_model_is_untouched(wrong, message):
    model = llama()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message) as caught:
        attach(model, **{"loops": 4, **wrong})
    assert "\n" not in str(caught.value)
    assert untouched(model, state) and not hasattr(model.config, "loopscale")
    attach(model, loops=4)


def test_attaching_twice_and_detaching_nothing():
    model = llama()
    attach(model, loops=4)
    with pytest.raises(UserError, match="attached already"):
        attach(model, loops=4)
    detach(model)
    with pytest.raises(UserError, match="nothing is attached"):
        detach(model)
    with pytest.raises(UserError, match="compiled already"):
        attach(torch.compile(model, backend="eager"), loops=4)


def test_a_residual_factor_of_the_model_is_not_stacked_unseen():
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2)
    model = GraniteForCausalLM(GraniteConfig(num_hidden_layers=2, residual_multiplier=0.22, **sizes))
    with pytest.raises(UserError, match=r"residual_multiplier = 0\.22"):
        attach(model, loops=4)
    assert attach(model, loops=4, stacked="allow").layers == 2


def test_groups_of_an_attached_model(capfd):
    model = llama()
    attach(model, loops=8, base_layers=1)
    groups = {group["name"]: group for group in ls.param_groups(model, lr=0.01)}
    assert set(groups) == {"embedding", "hidden", "readout", "gain", "outer_gain"}
    assert groups["hidden"]["lr"] == pytest.approx(0.01 * 2**-0.5) and groups["embedding"]["lr"] == 0.01
    assert "roles inferred" in capfd.readouterr().err
    for name in ("adamw", "muon", "sgd"):
        optimizer = ls.build_optimizer(attachment(model) if name == "adamw" else model, name, lr=0.01)
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()


def test_roles_are_printed_by_the_first_of_several_processes(capfd, monkeypatch):
    for rank, printed in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        model = llama()
        attach(model, loops=8)
        ls.param_groups(model, lr=0.01)
        assert ("roles inferred" in capfd.readouterr().err) is printed


def test_groups_of_a_wrapper_around_an_attached_part():
    model = llama()
    attach(model.model, loops=8)
    wrapped = nn.ModuleDict({"module": model})
    groups = {group["name"]: group["params"] for group in ls.param_groups(wrapped, lr=0.01)}
    assert groups["readout"] == [model.lm_head.weight] and groups["embedding"] == [model.model.embed_tokens.weight]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_the_rule_travels_with_the_checkpoint_and_is_compared(tmp_path):
    from transformers import LlamaForCausalLM

    model, x = llama(), tokens()
    handle = attach(model, loops=4, strength=0.5)
    handle.set_loops(8)
    expected = model(x).logits
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config.loopscale == handle.record() and handle.record()["loops"] == 8
    with pytest.raises(UserError, match=r"strength = 0\.5"):
        attach(again, loops=8)
    attach(again, loops=8, strength=0.5)
    torch.testing.assert_close(again(x).logits, expected, rtol=0, atol=0)


def test_a_block_visited_many_times_is_found_by_tracing():
    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(3):
                x = x + self.one(torch.tanh(self.norm(x)))
                x = torch.nn.functional.dropout(self.two(self.norm(x)).view_as(x), 0.1, self.training) + x
            return x

    model, x = Looped(), torch.randn(4, 8)
    before = model.eval()(x)
    handle = attach(model, loops=3)
    assert [branch.name for branch in handle.branches] == ["one", "two"] and handle.layers == 1
    assert handle.found_by == "tracing the additions"
    handle.detach()
    assert torch.equal(model(x), before)


def test_a_branch_replaced_later_is_noticed():
    peft = pytest.importorskip("peft")
    model = gpt2(1)
    attach(model, loops=4, branches=["*.c_proj"])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True))
    with pytest.raises(UserError, match="was replaced by a"):
        ls.param_groups(adapted, lr=0.1)
    model = llama()
    attach(model, loops=4)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj", "down_proj"]))
    groups = ls.param_groups(adapted, lr=0.1)
    assert [group["name"] for group in groups] == ["hidden"] and len(groups[0]["params"]) == 8
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    attachment(adapted).set_loops(10**6)
    core = adapted.base_model.model.model
    torch.testing.assert_close(core(tokens())[0], core.norm(core.embed_tokens(tokens())), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_verified_too(dtype):
    model = llama().to(dtype).train()
    handle = attach(model, loops=4)
    assert "verified: bit-identical" in handle.verified and model.training and model.config.use_cache is True
    assert hook_of(model.model.layers[0].mlp).scale.dtype == (
        torch.float64 if dtype is torch.float64 else torch.float32
    )


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.out = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x):
        return x + self.out(torch.relu(self.up(self.norm(x))))


def test_an_output_that_is_small_because_it_is_wide_is_no_depth_rule_and_gpt2s_is():
    def told(model):
        return any(
            "a depth rule of its own" in text for text in attach(model, loops=2, batch=torch.randn(2, 64)).warnings
        )

    assert not told(nn.Sequential(Mlp(), Mlp()))  # 1/sqrt(fan_in): half as large, and 1/sqrt(2 L) is 1/2 too
    deep = nn.Sequential(*(Mlp() for _ in range(4)))
    for layer in deep:
        nn.init.normal_(layer.up.weight, std=0.02)
        nn.init.normal_(layer.out.weight, std=0.02 / 8**0.5)
    with pytest.warns(UserWarning, match="a depth rule of its own"):
        assert told(deep)


class Prelude(nn.Module):
    """A block before the loop and one after it, built like the looped one; a head of the same class and other shapes."""

    class Block(nn.Module):
        def __init__(self, width, out):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, out)

        def forward(self, x):
            update = self.fc(self.norm(x))
            return x + update if update.shape == x.shape else update

    def __init__(self):
        super().__init__()
        self.pre, self.block, self.coda, self.head = (self.Block(8, out) for out in (8, 8, 8, 3))

    def forward(self, x):
        x = self.pre(x)
        for _ in range(4):
            x = self.block(x)
        return self.head(self.coda(x))


def test_a_block_that_is_built_like_a_looped_one_has_its_roles(capfd):
    model = Prelude()
    attach(model, loops=4, branches=["block.fc"], batch=torch.randn(2, 8))
    roles = {name: role.value for name, role in ls.roles_of(model).items() if not name.endswith("bias")}
    assert roles == {
        **dict.fromkeys(("pre.norm.weight", "block.norm.weight", "coda.norm.weight"), "gain"),
        **dict.fromkeys(("pre.fc.weight", "block.fc.weight", "coda.fc.weight"), "hidden"),
        "head.norm.weight": "outer_gain",
        "head.fc.weight": "readout",
    }
    assert "cannot tell" not in capfd.readouterr().err


def test_layers_that_are_stated_are_compared_with_those_counted():
    with pytest.warns(DepthRuleWarning, match=r"you say layers=3 and 1 were counted: eps is that of L = 3"):
        handle = attach(Prelude(), loops=4, layers=3, branches=["block.fc"], batch=torch.randn(2, 8))
    assert handle.layers == 3
