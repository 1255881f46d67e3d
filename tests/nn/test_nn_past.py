"""A cache changes nothing but time: every split of the tokens gives the logits of the whole; padding is not seen."""

import pytest
import torch

from loopscale import LoopedTransformer, ModelConfig, UserError
from loopscale.nn import KeyValueCache, Past, last_visit, per_visit

TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def make(**changes):
    base = {"vocab_size": 50, "width": 32, "head_dim": 16, "layers": 2, "loops": 3}
    return LoopedTransformer(ModelConfig(**{**base, **changes}))


def stepwise(model, cuts, sharing=per_visit, **kwargs):
    past = Past(KeyValueCache(sharing))
    parts = [model(part, past=past, **kwargs) for part in TOKENS.split(cuts, dim=1)]
    return torch.cat(parts, dim=1), past.cache


@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 1, 1, 5], [3, 9]])
@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 1, "qk_norm": True}, {"prelude": 1, "coda": 2}, {"rule": "deeploop"}]
)
def test_any_split_gives_the_logits_of_the_whole(cuts, changes):
    model = make(**changes)
    torch.testing.assert_close(stepwise(model, cuts)[0], model(TOKENS), atol=1e-5, rtol=1e-5)


def test_loops_are_chosen_per_cache():
    model = make()
    torch.testing.assert_close(stepwise(model, [7, 5], loops=6)[0], model(TOKENS, loops=6), atol=1e-5, rtol=1e-5)
    past = Past(KeyValueCache())
    model(TOKENS, loops=6, past=past)
    with pytest.raises(UserError, match=r"holds 12 tokens computed with 6 loops and this call asks for 3"):
        model(TOKENS[:, :1], past=past)


def test_the_last_visit_s_slot_is_exact_for_the_prompt_and_near_after_it_at_a_fraction_of_the_memory():
    model = make(loops=4, strength=0.5)
    whole = model(TOKENS)
    shared, small = stepwise(model, [8, 1, 1, 1, 1], last_visit)
    exact, large = stepwise(model, [8, 1, 1, 1, 1])
    torch.testing.assert_close(shared[:, :8], whole[:, :8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact, whole, atol=1e-5, rtol=1e-5)
    error = (shared - whole)[:, 8:].abs().max()
    assert 1e-4 < error < whole.std()
    assert large.numel == 4 * small.numel


def test_one_loop_makes_the_shared_cache_exact():
    model = make()
    shared, _ = stepwise(model, [4, 4, 4], last_visit, loops=1)
    torch.testing.assert_close(shared, model(TOKENS, loops=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(side):
    model = make()
    pad = torch.full((2, 4), 7)
    ones, zeros = torch.ones(2, 12), torch.zeros(2, 4)
    left = side == "left"
    padded = torch.cat((pad, TOKENS) if left else (TOKENS, pad), dim=1)
    padding = torch.cat((zeros, ones) if left else (ones, zeros), dim=1)
    logits = model(padded, past=Past(padding=padding))
    assert logits.isfinite().all()
    kept = logits[:, 4:] if left else logits[:, :12]
    torch.testing.assert_close(kept, model(TOKENS), atol=1e-5, rtol=1e-5)


def test_padding_and_cache_together():
    model = make()
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), TOKENS), dim=1)
    padding = torch.ones(2, 15)
    padding[0, :3] = 0
    cache, logits = KeyValueCache(), []
    for stop, start in [(8, 0), (9, 8), (15, 9)]:
        logits.append(model(padded[:, start:stop], past=Past(cache, padding[:, :stop])))
    row = torch.cat(logits, dim=1)[0, 3:]
    torch.testing.assert_close(row, model(TOKENS[:1])[0], atol=1e-5, rtol=1e-5)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(UserError, match=r"has shape \(2, 11\), but 2 sequences of 0 cached and 12 new tokens need"):
        make()(TOKENS, past=Past(padding=torch.ones(2, 11)))


def test_a_compiled_body_and_recomputation_give_way_to_the_cache():
    from loopscale.nn import Recompute

    model = make()
    expected = model(TOKENS)
    model.core.compile_body(backend="eager")
    model.core.recompute = Recompute(every=1)
    logits, _ = stepwise(model, [6, 6])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
