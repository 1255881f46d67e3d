"""Attention for models trained together under `torch.vmap`: K is folded into the batch, so one fused kernel serves all.

Shapes: K models, B sequences, H heads, T positions, E head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loopscale.nn.layers import attend


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
    """`scaled_dot_product_attention` of one of K models that are trained together.

    torch has no batching rule for its CPU kernel (it would loop over K, and warn), and this is the same on a GPU.
    """
    assert attn_mask is None, "a stack trains: it has no cache and no mask"
    mixed: Tensor = _Folded.apply(q_BHTE, k_BHTE, v_BHTE, is_causal, enable_gqa)  # type: ignore[no-untyped-call]
    return mixed
