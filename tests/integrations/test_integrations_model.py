"""LoopedForCausalLM is the house model, saved, loaded, cached and generating as transformers expects."""

import copy
import dataclasses
import json
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

from loopscale import LoopedTransformer, ModelConfig, UserError, errors  # noqa: E402
from loopscale.integrations import LoopedCache, LoopedConfig, LoopedForCausalLM  # noqa: E402
from loopscale.integrations.hf_model import CACHE  # noqa: E402

IDS = torch.randint(1, 60, (2, 9), generator=torch.Generator().manual_seed(0))
SMALL = {"vocab_size": 61, "width": 32, "head_dim": 16, "layers": 2, "loops": 3}
SHAPES = [
    {},
    {"tied_readout": True, "qk_norm": True},
    {"prelude": 1, "coda": 1, "kv_heads": 1},
    {"rule": "deeploop"},
    {"norm": "sandwich", "injection": "linear", "order": "layer", "visit_embedding": 2, "scale": "freeze"},
]


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = LoopedForCausalLM(LoopedConfig(**{**SMALL, **changes})).eval()
    # Larger than at the start, so that tokens differ clearly.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    return model


def greedy(model, ids=IDS, new=8, **kwargs):
    kwargs = {"do_sample": False, "pad_token_id": 0, **kwargs}
    return model.generate(ids, max_new_tokens=new, min_new_tokens=new, **kwargs)


# One value for every option of the house model, none of them the default: a new option needs a row here.
OTHER = {
    "vocab_size": 61,
    "width": 48,
    "layers": 3,
    "loops": 5,
    "prelude": 1,
    "coda": 2,
    "head_dim": 8,
    "kv_heads": 2,
    "mlp_ratio": 2.0,
    "qk_norm": True,
    "tied_readout": True,
    "rule": "sqrt",
    "strength": 0.5,
    "base_layers": 2,
    "base_width": 16,
    "norm": "sandwich",
    "injection": {"kind": "diagonal", "decay": 0.7},
    "order": "layer",
    "sampler": {"kind": "uniform", "least": 2, "most": 5},
    "gradient_visits": 2,
    "visit_embedding": 3,
    "scale": "freeze",
}


def test_every_option_of_the_house_model_has_a_row_here():
    assert set(OTHER) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("field", dataclasses.fields(ModelConfig), ids=lambda field: field.name)
def test_every_option_of_the_house_model_is_carried(field, tmp_path):
    values = {**{name: OTHER[name] for name in ("width", "head_dim")}, field.name: OTHER[field.name]}
    network = ModelConfig(**values)
    assert getattr(network, field.name) != getattr(ModelConfig(), field.name)
    LoopedConfig.of(network).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[field.name] is not None
    assert transformers.AutoConfig.from_pretrained(tmp_path).network() == network
    assert LoopedForCausalLM(LoopedConfig(**values)).model.config == network


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_are_those_of_the_house_model(changes):
    model = make(**changes)
    house = LoopedTransformer(ModelConfig(**{**SMALL, **changes}))
    house.load_state_dict(model.model.state_dict())
    assert torch.equal(model(IDS).logits, house(IDS))
    assert torch.equal(model(IDS, loops=5).logits, house(IDS, loops=5))
    torch.testing.assert_close(model(IDS, logits_to_keep=1).logits, house(IDS)[:, -1:])
    assert torch.equal(model(inputs_embeds=house.embedding(IDS)).logits, house(IDS))


@pytest.mark.parametrize("changes", SHAPES)
def test_saved_and_loaded_through_the_auto_class(changes, tmp_path):
    model = make(**changes)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LoopedForCausalLM and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half(IDS).logits.float(), model(IDS).logits, atol=0.3, rtol=0.1)


def test_the_global_generator_decides_the_weights():
    assert torch.equal(make(seed=1)(IDS).logits, make(seed=1)(IDS).logits)
    assert not torch.equal(make(seed=1)(IDS).logits, make(seed=2)(IDS).logits)


def test_the_loss_is_of_the_next_token_and_leaves_out_minus_100():
    model, labels = make(), IDS.clone()
    labels[:, :4] = -100
    expected = torch.nn.functional.cross_entropy(model(IDS).logits[:, 3:-1].flatten(0, 1), IDS[:, 4:].flatten())
    torch.testing.assert_close(model(IDS, labels=labels).loss, expected)


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("loops", [1, 5])
def test_the_cache_changes_nothing(changes, loops):
    model = make(**changes)
    assert torch.equal(greedy(model, loops=loops), greedy(model, loops=loops, use_cache=False))
    ids, whole, held = greedy(model, loops=loops), [], None
    for part in ids.split([9, 1, 1, 4, 2], dim=1):
        out = model(part, loops=loops, use_cache=True, **{CACHE: held})
        held = out[CACHE]
        whole.append(out.logits)
    expected = model(ids, loops=loops, use_cache=False).logits
    torch.testing.assert_close(torch.cat(whole, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_greedy_cached_equals_token_by_token_without_a_cache():
    model, ids = make(), IDS
    for _ in range(8):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(greedy(model), ids)


def test_left_padding_is_not_seen():
    model = make()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    torch.testing.assert_close(
        model(padded, attention_mask=mask).logits[:, 3:], model(IDS).logits, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(greedy(model, padded, attention_mask=mask)[:, 3:], greedy(model))
    mask[1, :3] = 1  # sequences of different lengths in a batch
    both = greedy(model, padded, attention_mask=mask)
    assert torch.equal(both[:1, 3:], greedy(model, IDS[:1])) and torch.equal(both[1:], greedy(model, padded[1:]))


def test_right_padding_in_a_training_batch_is_not_seen():
    model = make()
    padded = torch.cat([IDS, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    mask, labels = torch.ones_like(padded), padded.clone()
    mask[:, 9:], labels[:, 9:] = 0, -100
    torch.testing.assert_close(model(padded, attention_mask=mask, labels=labels).loss, model(IDS, labels=IDS).loss)


def test_packed_texts_do_not_see_each_other():
    model = make()
    row, places = IDS.reshape(1, -1), torch.arange(9).repeat(2)[None]
    logits = model(row, position_ids=places, use_cache=False).logits
    torch.testing.assert_close(logits.reshape(2, 9, -1), model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sharing", ["per_visit", "last_visit"])
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_and_samples_with_both_caches(sharing, how):
    model = make()

    def run(**more):
        torch.manual_seed(0)
        return greedy(model, **{**how, **more})

    cached = run(**{CACHE: LoopedCache(sharing)})
    assert cached.shape[1] == 17
    if sharing == "per_visit":
        assert torch.equal(cached, run(use_cache=False))


def test_the_shared_cache_is_smaller_exact_on_the_prompt_and_near_after_it():
    model = make(strength=0.5)
    full, small = LoopedCache(), LoopedCache("last_visit")
    with torch.no_grad():
        a, b = (model(IDS, **{CACHE: held}).logits for held in (full, small))
        torch.testing.assert_close(a, b)
        nexts = [model(IDS[:, :1], **{CACHE: held}).logits for held in (full, small)]
    assert len(full.layers) == 6 and len(small.layers) == 2
    assert full.get_seq_length() == small.get_seq_length() == 10
    assert 1e-5 < (nexts[0] - nexts[1]).abs().max() < nexts[0].std()


def test_scale_and_early_exit_are_chosen_per_call():
    model = make()
    house = model.model
    assert torch.equal(model(IDS, loops=6, scale="freeze").logits, house(IDS, loops=6, scale="freeze"))
    assert not torch.allclose(model(IDS, loops=6).logits, model(IDS, loops=6, scale="freeze").logits)
    assert torch.equal(model(IDS, exit_below=0.2).logits, house(IDS, exit_below=0.2))
    assert torch.equal(greedy(model, use_cache=False, exit_below=1e9), greedy(model, use_cache=False, exit_below=1e9))


def test_a_plain_dynamic_cache_serves_any_loops_and_copies_are_apart():
    model = make()
    held = transformers.DynamicCache()
    with torch.no_grad():
        model(IDS, loops=6, **{CACHE: held})
        other = copy.deepcopy(held)
        model(IDS[:, :2], loops=6, **{CACHE: other})
        after = model(IDS[:, :1], loops=6, **{CACHE: held}).logits
        expected = model(torch.cat([IDS, IDS[:, :1]], 1), loops=6, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    assert (held.get_seq_length(), other.get_seq_length()) == (10, 11)


def test_loops_is_a_knob_of_generate_and_of_the_config():
    model = make()

    def scores(**kwargs):
        out = greedy(model, return_dict_in_generate=True, output_logits=True, **kwargs)
        return torch.stack(out.logits)

    eight = scores(loops=8)
    assert (eight - scores()).abs().max() > 1e-3
    model.config.loops = 8
    assert torch.equal(eight, scores())


@pytest.mark.parametrize(
    "mistake,words",
    [
        (
            lambda m: m(IDS[:, :1], loops=4, **{CACHE: m(IDS, use_cache=True)[CACHE]}),
            "holds 9 tokens computed with 3 loops",
        ),
        (lambda m: m(IDS, loops=0), "loops must be a whole number of at least 1, got 0"),
        (lambda m: m(IDS, attention_mask=torch.ones(2, 1, 9, 9)), "attention_mask has 4 dimensions"),
        (lambda m: m(IDS, attention_mask=torch.ones(2, 8)), "has shape (2, 8), but 2 sequences of 0 cached and 9 new"),
        (lambda m: m(), "give either input_ids or inputs_embeds"),
        (lambda m: greedy(m, cache_implementation="static"), "a looped model needs a cache that grows"),
        (lambda m: LoopedCache("last_v"), "unknown sharing 'last_v' of cache slots: did you mean 'last_visit'?"),
        (lambda m: LoopedConfig(layrs=3), "LoopedConfig has no 'layrs': did you mean 'layers'?"),
        (lambda m: LoopedConfig(n_layers=3), "LoopedConfig has no 'n_layers': did you mean 'layers'?"),
        (lambda m: greedy(m, exit_below=0.1), "an early exit leaves slots of the cache empty"),
        (lambda m: LoopedConfig(num_hidden_layers=3), "num_hidden_layers follows from other fields"),
        (lambda m: LoopedConfig(width=33), "width 33 is not a multiple of head_dim 32"),
    ],
)
def test_mistakes_get_a_sentence(mistake, words):
    with pytest.raises(UserError) as caught:
        mistake(make())
    assert words in str(caught.value)


@pytest.mark.parametrize("changed", [{"rule": "sqrt"}, {"strength": 0.25}])
def test_a_checkpoint_of_another_rule_is_refused(changed, tmp_path):
    make().save_pretrained(tmp_path)
    (key,) = changed
    for ask in (changed, {"config": LoopedConfig(**{**SMALL, **changed})}):
        with pytest.raises(UserError, match=rf"was trained with {key} = .* and is to be loaded with {key} = "):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **ask)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path, loops=7).config.loops == 7


def test_a_frozen_scale_ties_the_weights_to_their_loops(tmp_path):
    make(scale="freeze").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was trained with frozen_loops = 3"):
        LoopedForCausalLM.from_pretrained(tmp_path, loops=7)


def test_a_checkpoint_with_a_hole_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.core.1.mlp.down.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model\.core\.1\.mlp\.down\.weight"):
        LoopedForCausalLM.from_pretrained(tmp_path)


def test_an_old_transformers_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.46.3")
    with pytest.raises(UserError, match=r"transformers 4\.46\.3 is too old: loopscale works with 4\.57 and newer"):
        errors.transformers()


def test_gradient_checkpointing_changes_memory_not_gradients():
    model = make().train()
    model(IDS, labels=IDS).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing and model.model.core.recompute.every == 1
    model(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_resized_embeddings_are_saved_and_loaded(tmp_path):
    for tied in (False, True):
        model = make(tied_readout=tied)
        model.resize_token_embeddings(70)
        assert model(IDS).logits.shape[-1] == 70
        model.save_pretrained(tmp_path / str(tied))
        loaded = LoopedForCausalLM.from_pretrained(tmp_path / str(tied))
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
