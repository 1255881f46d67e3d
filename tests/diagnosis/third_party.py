"""Layers of other people's models, looped by hand, and looped models as they come."""

from __future__ import annotations

import torch
from torch import nn

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 61}


class HandLooped(nn.Module):
    """x <- x + eps (layer(x) - x), which is the residual scale for a layer with one branch and near it with two."""

    def __init__(self, layer, loops, scale=1.0, rotary=None, width=32, nested=False, embed=True):
        super().__init__()
        self.layer, self.rotary, self.embed = layer, rotary, nn.Embedding(61, width)
        self.loops, self.scale, self.nested = loops, scale, nested

    def forward(self, tokens):
        x = self.embed(tokens)
        more = {}
        if self.rotary is not None:
            positions = torch.arange(tokens.shape[1])[None]
            more = {"position_embeddings": self.rotary(x, positions)}
        for _ in range(self.loops):
            y = self.layer(x, **more)
            y = y[0] if isinstance(y, tuple) else y
            x = x + y if self.nested else y if self.scale == 1.0 else x + self.scale * (y - x)
        return x


def llama(loops=8, **more):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(**TINY, num_key_value_heads=2, attn_implementation="eager")
    return HandLooped(LlamaDecoderLayer(config, 0), loops, rotary=LlamaRotaryEmbedding(config), **more)


def qwen(loops=8, **more):
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

    config = Qwen2Config(**TINY, num_key_value_heads=2, attn_implementation="sdpa", layer_types=["full_attention"])
    return HandLooped(Qwen2DecoderLayer(config, 0), loops, rotary=Qwen2RotaryEmbedding(config), **more)


def gpt2(loops=8, **more):
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=61, attn_implementation="eager")
    return HandLooped(GPT2Block(config, 0), loops, **more)


def bert(loops=8, **more):
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    return HandLooped(BertLayer(BertConfig(**TINY, attn_implementation="eager")), loops, **more)


def vit(loops=8, **more):
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTLayer

    values = {key: value for key, value in TINY.items() if key != "vocab_size"}
    return HandLooped(ViTLayer(ViTConfig(**values, attn_implementation="eager")), loops, **more)


def mamba(loops=6, **more):
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=1, vocab_size=61)
    return HandLooped(MambaModel(config).layers[0], loops, **more)


def albert(loops=6):
    from transformers import AlbertConfig, AlbertModel

    values = {**TINY, "num_hidden_layers": loops}
    return AlbertModel(AlbertConfig(**values, embedding_size=16, num_hidden_groups=1, attn_implementation="eager"))


def plain_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**TINY, "num_hidden_layers": 3}, num_key_value_heads=2))


def plain_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=2, n_layer=3, vocab_size=61))


def x_tied(loops=6):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=loops, heads=2, attn_dim_head=16, weight_tie_layers=True)
    return TransformerWrapper(num_tokens=61, max_seq_len=64, attn_layers=layers)


def x_ordered(loops=6):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=1, heads=2, attn_dim_head=16, layers_execute_order=(0, 1) * loops)
    return TransformerWrapper(num_tokens=61, max_seq_len=64, attn_layers=layers)


def x_sandwich(loops=6):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=32, depth=1, heads=2, attn_dim_head=16, sandwich_norm=True, layers_execute_order=(0, 1) * loops
    )
    return TransformerWrapper(num_tokens=61, max_seq_len=64, attn_layers=layers)


def x_plain():
    from x_transformers import Decoder, TransformerWrapper

    return TransformerWrapper(num_tokens=61, max_seq_len=64, attn_layers=Decoder(dim=32, depth=3, heads=2))


def x_looped(loops=4):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, pre_and_post_norm=True)
    return TransformerWrapper(num_tokens=61, max_seq_len=64, attn_layers=layers, looped=True, max_looped_steps=loops)


def hrm_text():
    from transformers import HrmTextConfig, HrmTextForCausalLM

    values = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 2}
    return HrmTextForCausalLM(HrmTextConfig(**values, H_cycles=2, L_cycles=3))


def torch_layer(first, loops=8):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(61, 32)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, norm_first=first, batch_first=True)

        def forward(self, tokens, num_loops=loops):
            x = self.embed(tokens)
            for _ in range(num_loops):
                x = self.layer(x)
            return x

    return Stack()
