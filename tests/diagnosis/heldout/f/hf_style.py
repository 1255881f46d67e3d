"""modeling_recurrent.py and configuration_recurrent.py in one file, as they lie in a model folder of the hub (without the library)."""

import copy
from collections import OrderedDict

import torch
from torch import nn


class RecurrentConfig:
    model_type = "recurrent"

    def __init__(
        self,
        vocab_size=120,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        num_recurrences=8,
        residual_multiplier=None,
        share_layers=True,
        use_cache=False,
        **kwargs,
    ):
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.rms_norm_eps, self.rope_theta = num_key_value_heads, rms_norm_eps, rope_theta
        self.num_recurrences, self.share_layers, self.use_cache = num_recurrences, share_layers, use_cache
        self.residual_multiplier = residual_multiplier or 1.0 / (num_recurrences * num_hidden_layers**0.5)
        for key, value in kwargs.items():
            setattr(self, key, value)


class CausalLMOutput(OrderedDict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as missing:
            raise AttributeError(name) from missing


class RecurrentRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def repeat_kv(hidden_states, n_rep):
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)
    return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)


class RecurrentAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings, attention_mask):
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        query_states = query_states * cos + rotate_half(query_states) * sin
        key_states = key_states * cos + rotate_half(key_states) * sin
        key_states = repeat_kv(key_states, self.num_key_value_groups)
        value_states = repeat_kv(value_states, self.num_key_value_groups)
        attn_weights = torch.matmul(query_states, key_states.transpose(2, 3)) * self.head_dim**-0.5
        attn_weights = attn_weights + attention_mask
        attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query_states.dtype)
        attn_output = torch.matmul(attn_weights, value_states).transpose(1, 2).contiguous()
        return self.o_proj(attn_output.reshape(*input_shape, -1)), attn_weights


class RecurrentMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class RecurrentDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = RecurrentAttention(config), RecurrentMLP(config)
        self.input_layernorm = RecurrentRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RecurrentRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.residual_multiplier = config.residual_multiplier

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, attention_mask)
        hidden_states = residual + hidden_states * self.residual_multiplier
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states * self.residual_multiplier
        return (hidden_states,)


class RecurrentModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = self.build(config)
        self.norm = RecurrentRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        head_dim = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / (config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def build(self, config):
        return nn.ModuleList([RecurrentDecoderLayer(config) for _ in range(config.num_hidden_layers)])

    def prepare(self, inputs_embeds, attention_mask):
        length = inputs_embeds.shape[1]
        freqs = torch.outer(torch.arange(length).float(), self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        minimum = torch.finfo(inputs_embeds.dtype).min
        causal = torch.full((length, length), minimum).triu(1)[None, None]
        if attention_mask is not None:
            causal = causal.masked_fill(attention_mask[:, None, None, :] == 0, minimum)
        return (emb.cos(), emb.sin()), causal

    def run(self, hidden_states, places, mask):
        for _ in range(self.config.num_recurrences):
            for decoder_layer in self.layers:
                hidden_states = decoder_layer(hidden_states, position_embeddings=places, attention_mask=mask)[0]
        return hidden_states

    def forward(self, input_ids, attention_mask=None, **kwargs):
        inputs_embeds = self.embed_tokens(input_ids)
        places, mask = self.prepare(inputs_embeds, attention_mask)
        return self.norm(self.run(inputs_embeds, places, mask))


class FixedStepsModel(RecurrentModel):
    """Compiles better with a constant trip count (TODO: read it from the config again)."""

    def run(self, hidden_states, places, mask):
        step = 0
        while step < 6:
            for decoder_layer in self.layers:
                hidden_states = decoder_layer(hidden_states, position_embeddings=places, attention_mask=mask)[0]
            step += 1
        return hidden_states


class CopiedModel(RecurrentModel):
    """ALBERT-style sharing: one layer, repeated."""

    def build(self, config):
        shared = RecurrentDecoderLayer(config)
        times = config.num_recurrences if config.share_layers else 1
        return nn.ModuleList([copy.deepcopy(shared) for _ in range(times)])

    def run(self, hidden_states, places, mask):
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, position_embeddings=places, attention_mask=mask)[0]
        return hidden_states


class RecurrentForCausalLM(nn.Module):
    def __init__(self, config, base=RecurrentModel):
        super().__init__()
        self.config = config
        self.model = base(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_recurrences=None, **kwargs):
        hidden_states = self.model(input_ids=input_ids, attention_mask=attention_mask)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


def _inputs(pad=0):
    g = torch.Generator().manual_seed(42)
    mask = torch.ones(2, 14, dtype=torch.long)
    if pad:
        mask[1, :pad] = 0
    return {"input_ids": torch.randint(0, 120, (2, 14), generator=g), "attention_mask": mask}


def granite_like(num_recurrences=8):
    inputs = _inputs()
    inputs["labels"] = inputs["input_ids"].clone()
    return RecurrentForCausalLM(RecurrentConfig(num_recurrences=num_recurrences)), inputs


def constant_trip():
    config = RecurrentConfig(num_recurrences=6)
    return RecurrentForCausalLM(config, FixedStepsModel), _inputs()


def copied_layers():
    config = RecurrentConfig(num_hidden_layers=1, num_recurrences=6)
    return RecurrentForCausalLM(config, CopiedModel), _inputs()


TRUTHS = {
    "granite_like": dict(
        codes=[],
        loops=8,
        layers=2,
        watch="RecurrentModel.run:hidden_states",
        kind="library",
        level="easy",
        why="residual_multiplier = 1/(N sqrt L)",
    ),
    "constant_trip": dict(
        codes=["knob-without-effect"],
        loops=6,
        layers=2,
        watch="FixedStepsModel.run:hidden_states",
        kind="knob",
        level="medium",
        why="config.num_recurrences and forward(num_recurrences=...) are taken and never read: 6 visits and the same output at 2, 6, 12",
    ),
    "copied_layers": dict(
        codes=["untied"],
        watch="CopiedModel.run:hidden_states",
        kind="tying",
        level="easy",
        why="share_layers, and six deep copies of one layer that are equal at construction and differ after a step",
    ),
}
