"""What a branch computes: RMSNorm, causal grouped-query attention with rotary positions, SwiGLU.

Shapes: B batch, T positions, D width, H query heads, K key-value heads, E head_dim, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.nn.config import ModelConfig
from loopscale.nn.past import Slot


class RMSNorm(nn.Module):
    """x / RMS(x) * gain over the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.size = (size,)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise any shape with `size` last; the dtype stays."""
        if x.is_cuda:
            return F.rms_norm(x, self.size, self.weight, eps=1e-6)
        # On CPUs F.rms_norm is not fused; forward and backward of this take 0.79 of its time (d = 256, fp32).
        square = torch.linalg.vecdot(x.float(), x.float())
        normed = x * (square / self.size[0] + 1e-6).rsqrt()[..., None].to(x.dtype)
        gained: Tensor = normed * self.weight.to(x.dtype)
        return gained


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions. [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.kv_heads = config.kv_heads or config.heads
        kv_width = self.kv_heads * self.head_dim
        # Queries and keys share a matrix because they are rotated together; a shared value or gate would cost a copy in
        # the backward pass (measured: 4 % of a step).
        self.qk = nn.Linear(config.width, config.width + kv_width, bias=False)
        self.value = nn.Linear(config.width, kv_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.norm_q = RMSNorm(self.head_dim) if config.qk_norm else None
        self.norm_k = RMSNorm(self.head_dim) if config.qk_norm else None
        self.attend: Callable[..., Tensor] = attend  # a stack of models puts another here

    def forward(self, x_BTD: Tensor, rotation: Tensor, slot: Slot | None = None) -> Tensor:
        """Mix values by attention; `rotation` is [2, T, E/2] from `rotary`, for queries and keys at once (G = H + K heads).

        `slot`: keys and values of earlier tokens, and a mask over them; without it attention is causal over the call.
        """
        B, T, _ = x_BTD.shape
        qk_BTGE = self.qk(x_BTD).view(B, T, self.heads + self.kv_heads, self.head_dim)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = torch.split(qk_BTGE, [self.heads, self.kv_heads], dim=2)
            qk_BTGE = torch.cat((self.norm_q(q), self.norm_k(k)), dim=2)
        qk_BGTE = rotate(qk_BTGE.transpose(1, 2), rotation)
        q_BHTE, k_BKTE = torch.split(qk_BGTE, [self.heads, self.kv_heads], dim=1)
        v_BKTE = self.value(x_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        mask = None
        if slot is not None:
            k_BKTE, v_BKTE = slot.extend(k_BKTE, v_BKTE)
            mask = slot.place.mask
        causal = mask is None and k_BKTE.shape[2] == T
        mixed_BHTE = self.attend(
            q_BHTE, k_BKTE, v_BKTE, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads
        )
        out_BTD: Tensor = self.out(mixed_BHTE.transpose(1, 2).reshape(B, T, -1))
        return out_BTD


def attend(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, **options: Any) -> Tensor:
    """Call PyTorch's attention, on a CPU in fp32: its bf16 kernel takes 3.2 times as long there, backward included."""
    if q_BHTE.device.type != "cpu" or q_BHTE.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, **options)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(q_BHTE.float(), k_BKTE.float(), v_BKTE.float(), **options)
    return mixed.to(q_BHTE.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x). [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Compute the MLP; its hidden width F is `config.mlp_width`."""
        down_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return down_BTD


def rotary(positions: Tensor, head_dim: int) -> Tensor:
    """Give angles of positions of any shape as complex-free pairs, [2, ..., E/2]: cos and sin of p * 10000^(-2i/E)."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions.float()[..., None] * 10000.0 ** -(pairs / head_dim)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs (i, i + E/2) of the last axis of [B, H, T, E] by the position's angle."""
    cos, sin = rotation.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def checked_tokens(tokens_BT: Tensor) -> Tensor:
    """Return the tokens; raise `UserError` unless they are whole numbers [B, T]."""
    if tokens_BT.ndim != 2 or tokens_BT.is_floating_point():
        got = f"{str(tokens_BT.dtype).removeprefix('torch.')} of shape {tuple(tokens_BT.shape)}"
        raise UserError(f"tokens are whole numbers of shape (batch, time), got {got}")
    return tokens_BT


def chunked_cross_entropy(x: Tensor, weight_VD: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Return the mean of -log softmax(x W^T)[target] in nats, `rows` positions at a time, in fp32 also under autocast.

    `x` is [..., D], `targets` [...] of vocabulary entries. torch's `linear_cross_entropy` computes the gradients in the
    forward pass, so one backward pass is all there is: no second derivatives. At 32768 entries, d = 256 and 256 rows it
    takes about 0.8 of the time and a sixth of the memory of whole logits (records/cross_entropy.json).

    Raises `UserError` when torch is older than 2.13.

    >>> import torch
    >>> x, weight = torch.zeros(2, 3, 8), torch.randn(5, 8)
    >>> loss = chunked_cross_entropy(x, weight, torch.zeros(2, 3, dtype=torch.long), rows=4)
    >>> round(float(loss), 4)  # ln 5
    1.6094
    """
    if not hasattr(F, "linear_cross_entropy"):
        raise UserError("train.loss_rows needs torch 2.13 or newer: leave it at 0, or update torch")
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    loss: Tensor = F.linear_cross_entropy(
        x.float().flatten(0, -2), weight_VD.float(), targets.flatten(), options=options
    )
    return loss


class _Folded(torch.autograd.Function):
    """Only `vmap` is ever used: gradients are taken outside of it, through the fused kernel's own backward."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, gqa: bool) -> Tensor:
        return attend(q, k, v, is_causal=causal, enable_gqa=gqa)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], q: Tensor, k: Tensor, v: Tensor, causal: bool, gqa: bool
    ) -> tuple[Tensor, int]:
        K = info.batch_size
        q, k, v = (_front(x, dim, K).flatten(0, 1) for x, dim in zip((q, k, v), in_dims, strict=False))
        mixed = attend(q, k, v, is_causal=causal, enable_gqa=gqa)
        return mixed.view(K, -1, *mixed.shape[1:]), 0


def _front(x: Tensor, dim: int | None, count: int) -> Tensor:
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)


def folded_attention(
    q_BHTE: Tensor,
    k_BHTE: Tensor,
    v_BHTE: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention of one of K models; torch's CPU kernel has no batching rule and would loop over K."""
    assert attn_mask is None, "a stack trains: it has no cache and no mask"
    mixed: Tensor = _Folded.apply(q_BHTE, k_BHTE, v_BHTE, is_causal, enable_gqa)  # type: ignore[no-untyped-call]
    return mixed
