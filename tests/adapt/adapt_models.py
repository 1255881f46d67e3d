"""Small random models of transformers, made on the spot."""

from __future__ import annotations

import pytest
import torch

tf = pytest.importorskip("transformers")


def llama(layers=2, **more):
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2)
    return tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=layers, **{**sizes, **more})).eval()


def gpt2(layers=2):
    torch.manual_seed(0)
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=layers, n_head=2, n_positions=32)).eval()


def bert(layers=2):
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    return tf.BertModel(tf.BertConfig(num_hidden_layers=layers, **sizes)).eval()


def vit(layers=2):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, image_size=16, patch_size=4)
    return tf.ViTModel(tf.ViTConfig(num_hidden_layers=layers, **sizes)).eval()


def tokens(batch=2, length=9, seed=0):
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(seed))
