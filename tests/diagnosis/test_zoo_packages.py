"""Looped models as their authors publish them (open-mythos, spiral-lm); skipped where they are not installed."""

from __future__ import annotations

import json

import pytest
import torch

from loopscale.diagnosis import diagnose

pytestmark = pytest.mark.slow


def mythos(**more):
    """h <- exp(-1) h + B e + block(norm(h + e)): decays to a bound. No position halts before the last visit."""
    main = pytest.importorskip("open_mythos.main")
    torch.manual_seed(0)
    small = {"vocab_size": 61, "dim": 32, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 32, "max_loop_iters": 8}
    small |= {"prelude_layers": 1, "coda_layers": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8}
    small |= {"qk_nope_head_dim": 8, "v_head_dim": 8, "n_experts": 4, "n_shared_experts": 1, "n_experts_per_tok": 2}
    return main.OpenMythos(main.MythosConfig(**small, expert_dim=16, lora_rank=4, act_threshold=100.0, **more))


def spiral(**more):
    """v <- 0.9 v + 0.1 force(h + W e), h <- h + W e + v: the stream is h, and its input is added at every visit."""
    model, config = pytest.importorskip("spiral.model"), pytest.importorskip("spiral.config")
    torch.manual_seed(0)
    small = {"vocab_size": 61, "emb_factor": 16, "d_model": 32, "n_heads": 2, "d_ff": 64, "max_seq_len": 32}
    return model.SpiralCore(config.SpiralConfig(**small, mean_iters=8, max_iters=16, **more))


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_mythos_is_bounded_by_its_decay(attention):
    found = diagnose(mythos(attn_type=attention))
    assert (found.loops, found.growth, found.tied, found.codes) == (8, "bounded", True, {"norm-bounded"})
    assert found.details["far_gain"] == pytest.approx(0.3679, rel=0.01)
    assert found.loops_argument == "n_loops"


@pytest.mark.parametrize(
    ("more", "codes"),
    [
        ({}, {"dead-branch", "unscaled-injection", "unscaled-residual"}),
        ({"modulation": "none"}, {"unscaled-injection", "unscaled-residual"}),
        ({"modulation": "none", "reproject": "none"}, {"unscaled-injection", "unscaled-residual"}),
    ],
    ids=["as it comes", "no gates", "no rotation"],
)
def test_spiral_follows_the_stream_and_not_its_momentum(more, codes):
    found = diagnose(spiral(**more))
    assert (found.loops, found.growth, found.codes) == (8, "linear", codes)
    norms = found.details["norms"]
    assert norms[-1] / norms[1] == pytest.approx(8, rel=0.1)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_block_shared_between_distinct_layers_is_no_fault():
    """Zamba2 at vocabulary 61; the batch that is made up has a padding token, whose embedding is zero."""
    pytest.importorskip("transformers")
    from transformers import Zamba2Config, Zamba2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"mamba_d_state": 8, "n_mamba_heads": 2, "chunk_size": 8, "adapter_rank": 4, "num_mem_blocks": 1}
    torch.manual_seed(0)
    config = Zamba2Config(vocab_size=61, num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2, **sizes)
    found = diagnose(Zamba2ForCausalLM(config))
    assert (found.loops, found.codes, found.tied) == (2, set(), True), found.text()
