"""Layers of transformers' Llama in a loop, scaled from outside by `loopscale.attach`, as an own model of a study.

    loopscale transfer --model examples/blocks/llama_study.py:make_model --loops 1,2,4,8,16

The layers are transformers' own code; what is added is the loop. Tokens are bytes of the Python library by default.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

import loopscale as ls


class LoopedLlama(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]. The layers add `x + f(x)` as Llama does; there is no scale in this class."""

    def __init__(self, loops: int, layers: int, width: int, vocab_size: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=8 * round(width / 3),
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            num_hidden_layers=layers,
            attn_implementation="sdpa",
        )
        self.loops = loops
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(layers))
        self.norm = LlamaRMSNorm(width)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loop, written plainly."""
        x = self.embed_tokens(tokens)
        rotation = self.rotary(x, torch.arange(tokens.shape[1], device=tokens.device)[None])
        for _ in range(self.loops):
            for layer in self.layers:
                x = layer(x, position_embeddings=rotation)
        return self.lm_head(self.norm(x))


def make_model(
    loops: int, layers: int, width: int, vocab_size: int, rule: str, strength: float, base_layers: int, seed: int
) -> nn.Module:
    """Initial weights of std 1/sqrt(fan in), embeddings of std 1; then the scale, attached."""
    torch.manual_seed(seed)
    model = LoopedLlama(loops, layers, width, vocab_size)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.0 if name == "embed_tokens.weight" else parameter.shape[1] ** -0.5)
    ls.attach(model, loops, layers=layers, rule=rule, strength=strength, base_layers=base_layers, check=seed == 0)
    return model
