"""Architectures of transformers at small random sizes: what `attach` is held to. A new one joins by adding a row."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

tf = pytest.importorskip("transformers")
logging.getLogger("transformers").setLevel(logging.ERROR)

SIZE = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2)
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED = dict(num_key_value_heads=2, **SIZE, **TOKENS)
IMAGE = dict(
    hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2, image_size=16, patch_size=4
)


def _decoder(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, f"{name}ForCausalLM")(getattr(tf, f"{name}Config")(**{**GROUPED, **more}))


def _plain(name: str, kind: str = "Model", **config: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, f"{name}{kind}")(getattr(tf, f"{name}Config")(**config))


GPT = dict(vocab_size=64, n_embd=32, n_layer=2, n_head=2, **TOKENS)
BART = dict(
    vocab_size=64,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=32,
    decoder_start_token_id=1,
    **TOKENS,
)
MLA = dict(
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
)

MODELS: dict[str, Callable[[], Any]] = {
    "Llama": _decoder("Llama"),
    "Qwen 2": _decoder("Qwen2"),
    "Qwen 3": _decoder("Qwen3", head_dim=16),
    "Mistral": _decoder("Mistral", head_dim=16),
    "Mixtral": _decoder("Mixtral", num_local_experts=2, num_experts_per_tok=1),
    "Gemma": _decoder("Gemma", head_dim=16),
    "Gemma 2": _decoder("Gemma2", head_dim=16),
    "Gemma 3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(head_dim=16, **GROUPED)),
    "OLMo": _decoder("Olmo"),
    "OLMo 2": _decoder("Olmo2"),
    "OLMoE": _decoder("Olmoe", num_experts=4, num_experts_per_tok=2),
    "Phi": _decoder("Phi"),
    "Phi-3": _decoder("Phi3"),
    "DeepSeek-V3": _decoder("DeepseekV3", **MLA),
    "StableLM": _decoder("StableLm"),
    "Granite": _decoder("Granite"),
    "Cohere": _decoder("Cohere"),
    "SmolLM 3": _decoder("SmolLM3"),
    "StarCoder 2": _decoder("Starcoder2"),
    "GLM 4": _decoder("Glm4", head_dim=16),
    "Nemotron": _decoder("Nemotron"),
    "GPT-2": _plain("GPT2", "LMHeadModel", n_positions=32, **GPT),
    "GPT-Neo": _plain(
        "GPTNeo",
        "ForCausalLM",
        attention_types=[[["global", "local"], 1]],
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=32,
        **TOKENS,
    ),
    "GPT-NeoX": _plain("GPTNeoX", "ForCausalLM", **SIZE, **TOKENS),
    "GPT-J": _plain("GPTJ", "ForCausalLM", rotary_dim=4, **GPT),
    "Falcon": _plain(
        "Falcon", "ForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **TOKENS
    ),
    "Bloom": _plain("Bloom", "ForCausalLM", vocab_size=64, hidden_size=32, n_layer=2, n_head=2, **TOKENS),
    "OPT": _plain(
        "OPT",
        "ForCausalLM",
        ffn_dim=48,
        word_embed_proj_dim=32,
        max_position_embeddings=32,
        **{k: v for k, v in SIZE.items() if k != "intermediate_size"},
        **TOKENS,
    ),
    "BERT": _plain("Bert", **SIZE),
    "RoBERTa": _plain("Roberta", **SIZE, **TOKENS),
    "ELECTRA": _plain("Electra", embedding_size=32, **SIZE),
    "DistilBERT": _plain("DistilBert", vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=2),
    "ModernBERT": _plain("ModernBert", **SIZE, **TOKENS, cls_token_id=1, sep_token_id=2),
    "ALBERT": _plain("Albert", embedding_size=16, **SIZE),
    "DeBERTa v2": _plain("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], **SIZE),
    "MPNet": _plain("MPNet", **SIZE, **TOKENS),
    "T5": _plain(
        "T5",
        vocab_size=64,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        **{k: v for k, v in TOKENS.items() if k != "bos_token_id"},
    ),
    "BART": _plain("Bart", **BART),
    "ViT": _plain("ViT", **IMAGE),
    "DeiT": _plain("DeiT", **IMAGE),
    "DINOv2": _plain("Dinov2", mlp_ratio=2, **{k: v for k, v in IMAGE.items() if k != "intermediate_size"}),
    "BEiT": _plain("Beit", **IMAGE),
    "CLIP vision": _plain("CLIPVision", **IMAGE),
    "SigLIP vision": _plain("SiglipVision", **IMAGE),
    "Swin": _plain("Swin", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4),
    "ConvNeXt": _plain("ConvNext", image_size=32, hidden_sizes=[8, 16], depths=[2, 2], num_stages=2),
    "Mamba": _plain("Mamba", "ForCausalLM", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, **TOKENS),
    "Mamba 2": _plain(
        "Mamba2",
        "ForCausalLM",
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
        **TOKENS,
    ),
    "RWKV": _plain(
        "Rwkv",
        "ForCausalLM",
        vocab_size=64,
        hidden_size=32,
        attention_hidden_size=32,
        num_hidden_layers=2,
        context_length=32,
        **TOKENS,
    ),
}


# How often a model's own forward pass visits its layers, where that is not once.
VISITS = {"ALBERT": 2}


def make(name: str) -> Any:
    """The model, random, in evaluation mode."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODELS[name]().eval()


def batch_for(model: Any) -> dict[str, torch.Tensor]:
    """Two short inputs of the kind the model reads."""
    draw = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size, generator=draw)}
    batch = {"input_ids": torch.randint(3, 64, (2, 9), generator=draw)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, 64, (2, 5), generator=draw)
    return batch
