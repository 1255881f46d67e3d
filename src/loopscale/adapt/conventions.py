"""How common models name their residual branches: one row a family; a new family joins by adding a row.

A pattern is a path below one layer. `?` marks a branch that only some members have (cross-attention). The module named
is the outermost whose output reaches the stream by linear steps alone (dropout, LayerScale, a reshape), so that
adapters and quantisation, which replace linear layers, stay inside the scale. Where the family adds inside a module,
its last linear layer is named instead; where it norms the branch's output (sandwich), that norm.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """The branches of a layer; rows are tried in order, so the more special one stands first."""

    name: str
    branches: tuple[str, ...]


FAMILIES = (
    Family("sandwich norm (Gemma 2, Gemma 3, OLMo 2)", ("post_attention_layernorm", "post_feedforward_layernorm")),
    Family("sandwich norm (GLM 4)", ("post_self_attn_layernorm", "post_mlp_layernorm")),
    Family("BERT-like, added inside", ("attention.output.dense", "output.dense", "?crossattention.output.dense")),
    Family("DINOv2-like", ("attention.output.dense", "mlp")),
    Family("encoder-decoder with fc2 (OPT, BART, Whisper)", ("self_attn", "fc2", "?encoder_attn")),
    Family("torch.nn.TransformerEncoderLayer", ("self_attn", "linear2", "?multihead_attn")),
    Family("Mixtral with its own block", ("self_attn", "block_sparse_moe")),
    Family("Llama-like", ("self_attn", "mlp", "?encoder_attn", "?cross_attn")),
    Family("Bloom and Falcon", ("self_attention.dense", "mlp.dense_4h_to_h")),
    Family("ALBERT", ("attention.dense", "ffn_output")),
    Family("DistilBERT", ("attention", "ffn")),
    Family("RWKV", ("attention", "feed_forward")),
    Family("ViT and GPT-NeoX", ("attention", "mlp")),
    Family("GPT-2, GPT-J, ModernBERT, timm", ("attn", "mlp", "?crossattention")),
    Family("Mamba", ("mixer",)),
    Family("ConvNeXt", ("pwconv2",)),
    Family("T5 self-attention", ("SelfAttention",)),
    Family("T5 cross-attention", ("EncDecAttention",)),
    Family("T5 feed-forward", ("DenseReluDense",)),
)
