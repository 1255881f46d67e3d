"""Models of a user: one on `Loop` with dropout, one that `attach` scales, one without tokens."""

import torch
from torch import nn

import loopscale as ls


class GPT(nn.Module):
    def __init__(self, loops, layers, width, vocab_size, drop=0.0, **rule):
        super().__init__()
        self.wte, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size, bias=False)
        blocks = [ls.ScaledResidual(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(layers)]
        self.loop, self.drop = ls.Loop(nn.Sequential(*blocks), loops, **rule), nn.Dropout(drop)
        self.unused = nn.LayerNorm(2)

    def forward(self, tokens):
        return self.head(self.loop(self.drop(self.wte(tokens))))


def make_model(loops, layers, width, vocab_size, rule, strength, base_layers):
    return GPT(loops, layers, width, vocab_size, rule=rule, strength=strength, base_layers=base_layers)


def dropping(loops, layers, width, vocab_size, rule):
    return GPT(loops, layers, width, vocab_size, drop=0.2, rule=rule)


class Plain(nn.Module):
    """A loop written by hand over a block that knows nothing of a scale."""

    def __init__(self, loops, width, vocab_size):
        super().__init__()
        self.loops = loops
        self.wte, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size, bias=False)
        self.norm, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, tokens):
        x = self.wte(tokens)
        for _ in range(self.loops):
            x = x + self.mlp(self.norm(x))
        return self.head(x)


def attached(loops, width, vocab_size):
    model = Plain(loops, width, vocab_size)
    ls.attach(model, loops=loops, layers=1, branches="mlp", batch=torch.zeros(1, 4, dtype=torch.long))
    return model


def bf16_stream(loops, width, vocab_size):
    """Its stream comes out of a matrix product, so that autocast makes it bf16."""
    head = nn.Linear(width, vocab_size)
    return nn.Sequential(nn.Embedding(vocab_size, width), nn.Linear(width, width), Twice(width), head)


class Twice(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = nn.Linear(width, width)

    def forward(self, x):
        return self.block(self.block(x))


def deaf(width):
    return nn.Linear(width, width)


def of_transformers(loops, width, vocab_size, rule, strength):
    """Llama, whose layers are visited as often as `loops` says."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes))
    ls.convert(model, layers=(0, 1), loops=loops, rule=rule, strength=strength, steps="even")
    return model
