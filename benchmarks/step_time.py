"""Claim: a training step of LoopedTransformer is at least as fast as the same network made of transformers' Llama layers.

python benchmarks/step_time.py [--out records/step_time.json]     needs: pip install 'loopscale[hf]'

The two hold the same weights (eps folded into Llama's output projections) and must give the same logits before they are
timed. Steps alternate, A B A B ..., so that a change of the machine's speed hits both; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopscale import LoopedTransformer, ModelConfig
from loopscale.atomic import write_json
from loopscale.train import provenance


class LoopedLlama(nn.Module):
    """Llama decoder layers of transformers, applied `loops` times, as people write it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        self.loops = config.loops
        self.llama = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                attn_implementation="sdpa",
                use_cache=False,
                rms_norm_eps=1e-6,
            )
        )
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.llama.embed_tokens(tokens_BT)
        positions = self.llama.rotary_emb(x, torch.arange(x.shape[1])[None])
        for _ in range(self.loops):
            for layer in self.llama.layers:
                out = layer(x, attention_mask=None, position_embeddings=positions)
                x = out[0] if isinstance(out, tuple) else out
        return self.readout(self.llama.norm(x))

    @torch.no_grad()
    def copy_from(self, ours: LoopedTransformer) -> None:
        """Take the weights of `ours`, eps folded into the output projections."""
        eps, config = ours.residual_scale(self.loops), ours.config
        self.llama.embed_tokens.weight.copy_(ours.embedding.weight)
        self.readout.weight.copy_(ours.readout.weight)
        for layer, block in zip(self.llama.layers, ours.core, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            query, key = block.attention.qk.weight.split([config.width] * 2)
            attention.q_proj.weight.copy_(query)
            attention.k_proj.weight.copy_(key)
            attention.v_proj.weight.copy_(block.attention.value.weight)
            mlp.gate_proj.weight.copy_(block.mlp.gate.weight)
            mlp.up_proj.weight.copy_(block.mlp.up.weight)
            attention.o_proj.weight.copy_(eps * block.attention.out.weight)
            mlp.down_proj.weight.copy_(eps * block.mlp.down.weight)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> float:
    began = time.perf_counter()
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import transformers

    config = ModelConfig(vocab_size=256, width=256, layers=2, loops=8, head_dim=32)
    ours, theirs = LoopedTransformer(config), LoopedLlama(config)
    theirs.copy_from(ours)
    tokens = torch.randint(0, 256, (2, 256), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=2e-4, rtol=1e-3)
    models = [(model, torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)) for model in (ours, theirs)]
    for _ in range(3):
        for model, optimizer in models:
            step(model, optimizer, tokens)
    pairs = [[step(model, optimizer, tokens) for model, optimizer in models] for _ in range(options.pairs)]
    ratios = sorted(a / b for a, b in pairs)
    record = {
        "claim": "step time of LoopedTransformer / the same network of transformers' Llama layers",
        "shape": {"width": 256, "layers": 2, "loops": 8, "context": 256, "batch": 2},
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "pairs": len(pairs),
        "seconds_median": [round(statistics.median(side), 4) for side in zip(*pairs, strict=True)],
        "provenance": {**provenance(), "transformers": transformers.__version__},
    }
    print(f"ratio {record['ratio_median']} (range {record['ratio_range']}) over {len(pairs)} pairs, same logits")
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
