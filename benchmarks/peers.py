"""The networks that benchmarks time ours against: a block of L layers looped N times, as each project's users get it.

Each has `forward(tokens) -> logits`, as many weights, and the same heads; `llama` and `plain` can take our weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopscale import LoopedTransformer, ModelConfig


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
        positions = self.llama.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
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


class PlainBlock(nn.Module):
    """What a tutorial has: nn.RMSNorm, one matrix for q, k, v, rotary by cosine and sine, SDPA, SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_width
        self.heads = config.heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        B, T, D = x.shape
        q, k, v = (p.view(B, T, self.heads, -1).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        q, k = (y * cos + _half_turned(y) * sin for y in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + eps * self.out(mixed.transpose(1, 2).reshape(B, T, D))
        h = self.norm2(x)
        return x + eps * self.down(F.silu(self.gate(h)) * self.up(h))


def _half_turned(y: Tensor) -> Tensor:
    a, b = y.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class PlainLoop(nn.Module):
    """A plain PyTorch loop over `PlainBlock`s."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.loops, self.eps = config.loops, 1.0
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head_dim = config.head_dim

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x, half = self.embed(tokens_BT), self.head_dim // 2
        inverse = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * inverse
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos(), angle.sin()
        for _ in range(self.loops):
            for block in self.blocks:
                x = block(x, cos, sin, self.eps)
        return self.readout(self.norm(x))

    @torch.no_grad()
    def copy_from(self, ours: LoopedTransformer) -> None:
        """Take the weights of `ours`."""
        self.eps = ours.residual_scale(self.loops)
        self.embed.weight.copy_(ours.embedding.weight)
        self.readout.weight.copy_(ours.readout.weight)
        for mine, block in zip(self.blocks, ours.core, strict=True):
            mine.qkv.weight.copy_(torch.cat((block.attention.qk.weight, block.attention.value.weight)))
            mine.out.weight.copy_(block.attention.out.weight)
            for name in ("gate", "up", "down"):
                getattr(mine, name).weight.copy_(getattr(block.mlp, name).weight)


class LoopedXTransformer(nn.Module):
    """x-transformers' decoder of L layers, its attention layers applied `loops` times by hand.

    Its own `looped=True` stops at 4 steps. Its feedforward has the same number of weights (SwiGLU).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from x_transformers import Decoder

        self.loops = config.loops
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.decoder = Decoder(
            dim=config.width,
            depth=config.layers,
            heads=config.heads,
            attn_dim_head=config.head_dim,
            attn_flash=True,
            use_rmsnorm=True,
            rotary_pos_emb=True,
            ff_glu=True,
            ff_swish=True,
            ff_no_bias=True,
            ff_mult=config.mlp_width / config.width,
            pre_norm_has_final_norm=False,
        )
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.embed(tokens_BT)
        for _ in range(self.loops):
            x = self.decoder(x)
        return self.readout(self.norm(x))


class Mythos(nn.Module):
    """open-mythos, its recurrent block alone: attention, a mixture of one expert and a shared one, per-visit adapters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from open_mythos.main import MythosConfig, OpenMythos

        self.loops = config.loops
        self.model = OpenMythos(
            MythosConfig(
                vocab_size=config.vocab_size,
                dim=config.width,
                n_heads=config.heads,
                n_kv_heads=config.heads,
                max_seq_len=512,
                max_loop_iters=config.loops,
                prelude_layers=0,
                coda_layers=0,
                attn_type="gqa",
                n_experts=1,
                n_shared_experts=1,
                n_experts_per_tok=1,
                expert_dim=config.mlp_width,
                lora_rank=4,
                act_threshold=100.0,  # no position halts early
            )
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.model(tokens_BT, n_loops=self.loops)


class Spiral(nn.Module):
    """spiral-lm's core: one block, visited with momentum, modulated and rotated per visit."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from spiral.config import SpiralConfig
        from spiral.model import SpiralCore

        self.loops = config.loops
        self.model = SpiralCore(
            SpiralConfig(
                vocab_size=config.vocab_size,
                emb_factor=0,
                d_model=config.width,
                n_heads=config.heads,
                d_ff=config.mlp_width,
                max_seq_len=512,
                mean_iters=config.loops,
                max_iters=config.loops,
            )
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.model(tokens_BT, n_iters=self.loops)


# Architectures of their own: only their time per floating-point operation can be held against ours.
OTHERS: dict[str, Callable[[ModelConfig], nn.Module]] = {"open-mythos": Mythos, "spiral-lm": Spiral}
PEERS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "plain PyTorch loop": PlainLoop,
    "transformers Llama layers": LoopedLlama,
    "x-transformers": LoopedXTransformer,
}
