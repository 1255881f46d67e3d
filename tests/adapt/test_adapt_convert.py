"""convert loops layers of an existing model: definitions, cache slots, tying, and the way back."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from adapt_architectures import MODELS, batch_for, make
from adapt_models import bert, llama, tokens
from torch import nn

import loopscale as ls
from loopscale import UserError, attach, convert, detach, restore

X = tokens()


def logits(model, x=X, **more):
    return model(x, use_cache=False, **more).logits


def stack(model, x, span):
    """The layers of a Llama called by hand, on a stream."""
    positions = model.model.rotary_emb(x, torch.arange(x.shape[1])[None])
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
    for layer in model.model.layers[span]:
        out = layer(x, attention_mask=mask, position_embeddings=positions)
        x = out[0] if isinstance(out, tuple) else out
    return x


def test_strength_zero_and_one_loop_are_the_original_bit_by_bit():
    model = llama(4)
    before, listed = logits(model), list(model.state_dict())
    for loops, strength in ((5, 0.0), (1, 0.7)):
        with convert(model, 1, 3, loops=loops, strength=strength) as handle:
            assert torch.equal(logits(model), before) and list(model.state_dict()) == listed
            assert "verified" in str(handle)
    assert torch.equal(logits(model), before) and not hasattr(model.config, "loopscale")
    assert {type(layer).__mro__[1] for layer in model.model.layers} == {type(llama(1).model.layers[0]).__mro__[1]}


def test_damped_steps_are_what_the_formula_says():
    model = llama(4)
    hidden = stack(model, model.model.embed_tokens(X), slice(0, 3))
    for _ in range(2):
        hidden = hidden + 0.25 * (stack(model, hidden, slice(1, 3)) - hidden)
    expected = model.lm_head(model.model.norm(stack(model, hidden, slice(3, 4))))
    convert(model, 1, 3, loops=3, strength=0.5)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_even_steps_are_the_rule_at_every_visit():
    model = llama(3)
    twin = copy.deepcopy(model)
    eps = ls.residual_scale(ls.Depth(4, 2), 0.8, base_layers=2)
    with torch.no_grad():
        for place, layer in enumerate(twin.model.layers):
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.mul_(0.8 if place == 0 else eps)
    hidden = stack(twin, twin.model.embed_tokens(X), slice(0, 1))
    for _ in range(4):
        hidden = stack(twin, hidden, slice(1, 3))
    expected = twin.lm_head(twin.model.norm(hidden))
    before = logits(model)
    with convert(model, 1, 3, loops=4, steps="even", strength=0.8):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(model), before)


def test_the_start_moves_continuously_with_strength():
    model = llama(4)
    before = logits(model)
    gaps = []
    for strength in (0.01, 0.1, 1.0):
        with convert(model, 1, 3, loops=4, strength=strength):
            gaps.append(float((logits(model) - before).detach().norm()))
    assert 5 < gaps[1] / gaps[0] < 15 and gaps[1] < gaps[2]


GENERATING = ("Llama", "Gemma 3", "GPT-2", "DeepSeek-V3", "Mamba 2", "Bloom")


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("steps", ["damped", "even"])
def test_generating_with_a_cache_equals_without(name, steps):
    model = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(model, 0, 2, loops=3, strength=0.8, steps=steps)
    x = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(3))
    settings = dict(max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(x), eos_token_id=None)
    with_cache = model.generate(x, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(x, use_cache=False, **settings))
    assert with_cache.shape == (2, 13)


def test_beams_and_static_caches_reach_every_slot():
    model = llama(3)
    convert(model, 1, 3, loops=3, strength=0.9)
    settings = dict(
        max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(X), pad_token_id=0, eos_token_id=None
    )
    plain = model.generate(X, use_cache=False, num_beams=3, **settings)
    assert torch.equal(model.generate(X, use_cache=True, num_beams=3, **settings), plain)
    static = model.generate(X, cache_implementation="static", disable_compile=True, **settings)
    assert torch.equal(static, model.generate(X, use_cache=False, **settings))


def test_a_step_with_a_cache_gives_the_logits_of_the_whole():
    model = llama(3)
    handle = convert(model, 1, 3, loops=4, strength=0.9)
    out = model(X[:, :5], use_cache=True)
    cache = next(value for value in out.values() if hasattr(value, "layers"))
    assert len(cache.layers) == 3 + 3 * 2
    name = next(key for key, value in out.items() if value is cache)
    torch.testing.assert_close(model(X[:, 5:], **{name: cache}).logits, logits(model)[:, 5:], atol=1e-5, rtol=1e-4)
    handle.set_loops(2)
    with pytest.raises(UserError, match="cached at 4 loops and the model now runs 2"):
        model(X[:, :1], **{name: cache})
    cache.reset() if hasattr(cache, "reset") else None
    handle.detach()
    filled = model(X[:, :5], use_cache=True)[name]
    convert(model, 1, 3, loops=4)
    with pytest.raises(UserError, match="without loops"):
        model(X[:, 5:], **{name: filled})


@pytest.mark.parametrize("tie", ["first", "average"])
def test_tying_leaves_a_smaller_model_and_can_be_taken_back(tie, tmp_path):
    from transformers import LlamaForCausalLM

    model = llama(6)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    handle = convert(model, 1, 5, loops=2, layers=2, tie=tie, strength=0.5)
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    kept = model.model.layers[2].mlp.up_proj.weight
    one, other = (state[f"model.layers.{i}.mlp.up_proj.weight"] for i in (2, 4))
    torch.testing.assert_close(kept, one if tie == "first" else (one + other) / 2)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    model.save_pretrained(tmp_path)
    expected = logits(model)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="strength = 0"):
        convert(again, 1, 3, loops=2, strength=0.1)
    assert restore(again).record() == handle.record()
    torch.testing.assert_close(logits(again), expected, atol=0, rtol=0)
    handle.detach()
    assert torch.equal(logits(model), before) and model.config.num_hidden_layers == 6
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_copies_and_pickles_have_their_own_knob():
    model = llama(3)
    handle = convert(model, 1, 3, loops=4)
    twin, before = copy.deepcopy(model), logits(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (twin, torch.load(buffer, weights_only=False)):
        assert torch.equal(logits(other), before)
        ls.attachment(other).set_loops(1)
        assert not torch.equal(logits(other), before) and handle.loops == 4
        detach(other)
    assert torch.equal(logits(model), before)


def test_a_copy_of_a_tied_model_is_taken_back_by_itself():
    model = llama(6)
    before = logits(model)
    convert(model, 1, 5, loops=2, layers=2, tie="average")
    twin, tied = copy.deepcopy(model), logits(model)
    detach(twin)
    assert torch.equal(logits(twin), before) and twin.config.num_hidden_layers == 6
    assert torch.equal(logits(model), tied) and model.config.num_hidden_layers == 4


def test_gradients_are_those_without_checkpointing():
    model = llama(3).train()
    convert(model, 1, 3, loops=3, strength=0.9)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        first, second = logits(model), logits(model, X.flip(0))
        (first.square().mean() + second.square().mean()).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


class Net(nn.Module):
    """Layers and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    "make_it",
    [
        pytest.param(lambda: (Net().eval(), dict(batch=torch.randn(2, 5, 16)), torch.randn(2, 5, 16)), id="plain"),
        pytest.param(lambda: (llama(3), {}, X), id="llama", marks=pytest.mark.slow),
    ],
)
def test_changing_loops_makes_no_new_graph(make_it):
    import torch._dynamo
    from torch._dynamo.utils import counters

    model, more, x = make_it()
    handle = convert(model, 1, 3, loops=2, strength=0.5, **more)
    run = (lambda m: logits(m, x)) if hasattr(model, "config") else (lambda m: m(x))
    compiled, graphs = torch.compile(model, backend="eager"), []
    for loops in (2, 3, 8, 5, 2):
        handle.set_loops(loops)
        torch.testing.assert_close(run(compiled), run(model), atol=1e-6, rtol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    # From the third visit on the stream is a mixture; two visits alone have not seen one.
    assert graphs[1] <= graphs[0] + 1 and len(set(graphs[1:])) == 1
    torch.compiler.reset()


def test_post_norm_layers_can_be_damped():
    model = bert(4)
    before = model(X)[0]
    with convert(model, 1, 3, loops=4, strength=0.0):
        assert torch.equal(model(X)[0], before)
    with convert(model, 1, 3, loops=4, strength=0.2):
        assert 0 < float(((model(X)[0] - before).norm() / before.norm()).detach()) < 0.2


def test_groups_of_a_converted_model(capfd):
    model = llama(3)
    handle = convert(model, 1, 3, loops=4)
    names = {group["name"] for group in ls.param_groups(model, lr=0.1)}
    assert names == {"embedding", "hidden", "readout", "gain", "outer_gain"}
    assert "roles inferred" in capfd.readouterr().err
    optimizer = ls.build_optimizer(handle, "muon", lr=0.01)
    logits(model).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("span", "more", "message"),
    [
        ((0, 9), {}, "no range of the 4 layers"),
        ((2, 2), {}, "no range"),
        ((-1, 2), {}, "no range"),
        ((0, True), {}, "no range"),
        ((0, 3), dict(layers=2), "must divide the 3 layers"),
        ((0, 2), dict(layers=1, tie="mean"), "unknown tie"),
        ((0, 2), dict(steps="dampd"), "did you mean 'damped'"),
        ((0, 2), dict(loops=0), "loops must be"),
        ((0, 2), dict(strength=float("nan")), "strength must be"),
        ((0, 2), dict(stack="model.layer"), "did you mean 'model.layers'"),
        ((0, 2), dict(rule="deepnorm"), "no damped steps"),
        ((0, 2), dict(rule="deepnorm", steps="even"), "pre-norm rule"),
    ],
)
def test_bad_input_gets_one_sentence_and_the_model_is_untouched(span, more, message):
    model = llama(4)
    before, kinds = logits(model), [type(m) for m in model.modules()]
    with pytest.raises(UserError, match=message) as caught:
        convert(model, *span, **{"loops": 3, **more})
    assert "\n" not in str(caught.value)
    assert [type(m) for m in model.modules()] == kinds and not any(m._forward_hooks for m in model.modules())
    assert torch.equal(logits(model), before) and not hasattr(model.config, "loopscale")


def test_layers_of_different_shapes_are_not_tied():
    model = make("DeepSeek-V3")
    with pytest.raises(UserError, match=r"layers 0 and 1 cannot be tied: 'mlp"):
        convert(model, 0, 2, loops=2, layers=1)
    assert len(model.model.layers) == 2


def test_twice_and_mixed_with_attach():
    model = llama(4)
    convert(model, 1, 3, loops=2)
    for again in (lambda: convert(model, 1, 3, loops=2), lambda: attach(model, loops=2)):
        with pytest.raises(UserError, match="attached already"):
            again()


def test_several_stacks_want_a_name():
    model = make("BART")
    with pytest.raises(UserError, match="stack="):
        convert(model, 0, 1, loops=2)
    handle = convert(model, 0, 2, loops=2, stack="decoder.layers")
    assert handle.depth.layers == 2


def test_an_old_transformers_is_told(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.40.1")
    with pytest.raises(UserError, match=r"transformers 4\.40\.1"):
        convert(llama(2), 0, 1, loops=2)


def test_a_stack_without_transformers():
    model, x = Net().eval(), torch.randn(2, 5, 16)
    before = model(x)
    with convert(model, 0, 2, loops=3, strength=0.0, batch=x):
        torch.testing.assert_close(model(x), before)
    with pytest.raises(UserError, match=r"no nn\.ModuleList"):
        convert(nn.Sequential(nn.Linear(4, 4)), 0, 1, loops=2)


def test_every_architecture_is_known_to_the_sample():
    assert set(GENERATING) <= set(MODELS)


def test_states_without_slots_are_refused():
    model = make("RWKV")
    convert(model, 0, 1, loops=3)
    with pytest.raises(UserError, match="RwkvBlock keeps its 'state' in a list"):
        model(X, use_cache=True)
    assert model(X, use_cache=False).logits.shape == (2, 9, 64)


def test_an_encoder_decoder_generates_with_its_cache():
    from transformers import T5Config, T5ForConditionalGeneration

    size = dict(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(pad_token_id=0, eos_token_id=2, **size)).eval()
    convert(model, 0, 2, loops=3, strength=0.9, stack="decoder.block")
    settings = dict(max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(X), eos_token_id=None)
    plain = model.generate(X, use_cache=False, **settings)
    assert torch.equal(model.generate(X, use_cache=True, **settings), plain)


def test_a_model_that_loops_by_itself_is_told():
    class Twice(Net):
        def forward(self, x):
            return super().forward(super().forward(x))

    with pytest.raises(UserError, match="runs 'blocks' 2 times"):
        convert(Twice().eval(), 0, 2, loops=3, batch=torch.randn(2, 5, 16))


def test_layers_that_change_the_stream_are_refused_in_a_sentence():
    class Narrowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = Narrowing(), torch.randn(3, 8)
    before = model(x)
    with pytest.raises(UserError, match="keep the shape of the stream"):
        convert(model, 0, 2, loops=3, batch=x)
    assert torch.equal(model(x), before) and type(model.layers[0]) is nn.Linear


@pytest.mark.parametrize("kind", ["T5", "BART"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_tying_one_side_of_an_encoder_decoder_saves_this_very_network(kind, side, tmp_path):
    import transformers as tf

    torch.manual_seed(0)
    common = dict(vocab_size=64, d_model=32, decoder_start_token_id=0, pad_token_id=0)
    if kind == "T5":
        config = tf.T5Config(d_kv=16, d_ff=48, num_layers=3, num_decoder_layers=3, num_heads=2, **common)
        model, stack = tf.T5ForConditionalGeneration(config).eval(), f"{side}.block"
    else:
        sizes = {f"{one}_{what}": n for one in ("encoder", "decoder") for what, n in (("layers", 3), ("ffn_dim", 48))}
        heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32)
        model = tf.BartForConditionalGeneration(tf.BartConfig(**sizes, **heads, **common)).eval()
        stack = f"model.{side}.layers"
    batch = dict(input_ids=X, decoder_input_ids=X, use_cache=False)
    before, config = model(**batch).logits, model.config.to_dict()
    handle = convert(model, 1, 3, loops=2, layers=1, stack=stack)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with pytest.raises(UserError, match=r"call loopscale\.restore\(model\)"):
        ls.param_groups(again, lr=0.1)
    restore(again)
    assert torch.equal(again(**batch).logits, expected)
    handle.detach()
    assert torch.equal(model(**batch).logits, before) and model.config.to_dict() == config


def test_a_pair_of_layers_names_the_core_and_even_steps_start_at_full_strength():
    model = llama(4)
    handle = convert(model, layers=(1, 2), loops=4, steps="even")
    assert (handle.record()["start"], handle.record()["stop"], handle.strength) == (1, 3, 1.0)
    assert "eps 0.25 = strength 1 x 0.25 (L / base_layers = 2 / 2)" in str(handle)
    handle.set_loops(8)
    assert "are visited N = 8 times" in str(handle) and "eps 0.125" in str(handle) and "4" not in handle.verified
    handle.detach()
    assert convert(model, 1, 3, loops=4).strength == 0.1
    for wrong in (dict(layers=(1, 2), start=1), dict(loops=4), dict(layers=(1, 2, 3)), dict(layers=(2, 9))):
        with pytest.raises(UserError, match=r"layers|range"):
            convert(llama(4), **{"loops": 4, **wrong})


@pytest.mark.parametrize("name", ["Mamba 2", "DINOv2"])
def test_lists_that_are_not_per_layer_keep_their_length(name, tmp_path):
    model, batch = make(name).eval(), batch_for(make(name))
    convert(model, 0, 2, loops=2, layers=1, batch=batch)
    with torch.no_grad():
        expected = model(**batch)[0]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    restore(again, batch=batch)
    with torch.no_grad():
        assert torch.equal(again(**batch)[0], expected)
