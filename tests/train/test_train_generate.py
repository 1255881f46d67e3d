"""Sampling: a cache changes the time, not the text; the window moves by halves."""

from pathlib import Path

import pytest
import torch

from loopscale import LoopedTransformer, ModelConfig, UserError
from loopscale.nn import last_visit, per_visit
from loopscale.train import TrainConfig, generate, train_run
from loopscale.train.generation import continued, window

MODEL = LoopedTransformer(ModelConfig(vocab_size=50, width=32, head_dim=16, layers=2, loops=3))


def test_the_window_never_exceeds_the_context_and_keeps_half():
    for context in (2, 3, 8, 64):
        for length in range(1, 300):
            seen = length - window(length, context)
            assert min(length, context // 2) <= seen <= context and seen >= 1


@pytest.mark.parametrize("context", [4, 16, 64])
def test_cached_tokens_and_logits_are_those_without_a_cache(context):
    def run(sharing):
        logits = []

        def pick(scores):
            logits.append(scores)
            return int(scores.argmax())

        return continued(MODEL, [1, 2, 3, 4, 5], 30, pick, context, sharing, loops=5), torch.stack(logits)

    (with_cache, logits), (without, expected) = run(per_visit), run(None)
    assert with_cache == without
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(run(last_visit)[1], expected, atol=1e-5)


def test_the_command_s_caches(tiny: TrainConfig, tmp_path: Path):
    train_run(tiny, tmp_path / "run")
    texts = {cache: generate(tmp_path / "run", "loop ", 40, seed=1, cache=cache) for cache in ("per-visit", "none")}
    assert texts["per-visit"] == texts["none"]
    assert len(generate(tmp_path / "run", "loop ", 40, seed=1, cache="last-visit")) > 5
    with pytest.raises(UserError, match="unknown cache 'pervisit': did you mean 'per-visit'"):
        generate(tmp_path / "run", "loop ", cache="pervisit")
