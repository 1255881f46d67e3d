"""In the manner of large libraries: config classes, mixins, model outputs, a library's own ALBERT, torch's own encoder."""

import math
from collections import OrderedDict

import torch
from torch import nn


class ModelOutput(OrderedDict):
    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class PretrainedConfig:
    def __init__(self, **kwargs):
        for key, value in kwargs.items():
            setattr(self, key, value)


class UniversalConfig(PretrainedConfig):
    model_type = "universal"

    def __init__(self, vocab_size=80, hidden_size=32, num_heads=4, total_ut_steps=4, num_hidden_layers=2, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.num_heads = vocab_size, hidden_size, num_heads
        self.total_ut_steps, self.num_hidden_layers = total_ut_steps, num_hidden_layers


class UniversalRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(input_dtype)


class UniversalAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, size = config, config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, hidden_states, attention_mask=None):
        shape = (*hidden_states.shape[:-1], self.config.num_heads, -1)
        query, key, value = (
            proj(hidden_states).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.o_proj(output.transpose(1, 2).flatten(2)), None


class UniversalMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.gate_proj, self.up_proj = (nn.Linear(size, 3 * size, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(3 * size, size, bias=False), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class UniversalDecoderLayer(nn.Module):
    """A norm before and one behind each branch."""

    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = UniversalAttention(config), UniversalMLP(config)
        self.input_layernorm, self.input_layernorm_2, self.post_attention_layernorm, self.post_attention_layernorm_2 = (
            UniversalRMSNorm(config.hidden_size) for _ in range(4)
        )

    def forward(self, hidden_states, attention_mask=None):
        residual = hidden_states
        hidden_states, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask)
        hidden_states = residual + self.input_layernorm_2(hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(self.post_attention_layernorm(hidden_states))
        return residual + self.post_attention_layernorm_2(hidden_states)


class UniversalModel(nn.Module):
    """Ouro's shape: all layers, the model's norm, and again from there; a gate says with which chance each step is the last."""

    def __init__(self, config):
        super().__init__()
        self.config, self.embed_tokens = config, nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([UniversalDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm, self.early_exit_gate = UniversalRMSNorm(config.hidden_size), nn.Linear(config.hidden_size, 1)

    def forward(self, input_ids, attention_mask=None):
        hidden_states, gates, remaining = self.embed_tokens(input_ids), [], 1.0
        causal = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
        for _ in range(self.config.total_ut_steps):
            for decoder_layer in self.layers:
                hidden_states = decoder_layer(hidden_states, causal)
            hidden_states = self.norm(hidden_states)
            exit_now = self.early_exit_gate(hidden_states).sigmoid()
            gates.append(remaining * exit_now)
            remaining = remaining * (1 - exit_now)
        return ModelOutput(last_hidden_state=hidden_states, exit_pdf=torch.stack(gates))


class UniversalForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = UniversalModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = self.model(input_ids, attention_mask)
        return ModelOutput(logits=self.lm_head(outputs.last_hidden_state), exit_pdf=outputs.exit_pdf)


class LoRALinear(nn.Module):
    """One base matrix; the visit picks its own low-rank pair. The pairs come from a decomposition, so neither factor is zero."""

    def __init__(self, fan_in, fan_out, visits, rank=2):
        super().__init__()
        self.base = nn.Linear(fan_in, fan_out)
        self.lora_A = nn.Parameter(torch.randn(visits, rank, fan_in) / math.sqrt(fan_in))
        self.lora_B = nn.Parameter(torch.randn(visits, fan_out, rank) * 0.2)

    def forward(self, x, visit):
        return self.base(x) + (x @ self.lora_A[visit].mT) @ self.lora_B[visit].mT


class RelaxedRecursive(nn.Module):
    """A recursive transformer after a conversion from a pretrained one: shared matrices, LoRA and norms of each visit its own."""

    def __init__(self, config, scaled):
        super().__init__()
        size, self.visits = config.hidden_size, config.num_loops
        self.embed_tokens, self.lm_head = nn.Embedding(config.vocab_size, size), nn.Linear(size, config.vocab_size)
        self.ln_a, self.ln_m = (nn.ModuleList([nn.RMSNorm(size) for _ in range(self.visits)]) for _ in range(2))
        self.qkv, self.o = LoRALinear(size, 3 * size, self.visits), LoRALinear(size, size, self.visits)
        self.fc_in, self.fc_out = LoRALinear(size, 2 * size, self.visits), LoRALinear(2 * size, size, self.visits)
        self.multiplier = 1 / self.visits if scaled else 1

    def attention(self, x, i):
        q, k, v = self.qkv(self.ln_a[i](x), i).unsqueeze(1).chunk(3, -1)
        return self.o(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1), i)

    def forward(self, input_ids):
        hidden = self.embed_tokens(input_ids)
        for i in range(self.visits):
            hidden = hidden + self.attention(hidden, i) * self.multiplier
            hidden = hidden + self.fc_out(nn.functional.gelu(self.fc_in(self.ln_m[i](hidden), i)), i) * self.multiplier
        return self.lm_head(hidden)


class SharedEncoder(nn.Module):
    """One layer was made and given to nn.TransformerEncoder, in the belief that it would be used six times; torch makes copies."""

    def __init__(self, num_layers=6, d=32):
        super().__init__()
        self.embed, self.proj = nn.Embedding(50, d), nn.Linear(d, 50)
        shared = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(shared, num_layers=num_layers, enable_nested_tensor=False)

    def forward(self, src):
        return self.proj(self.encoder(self.embed(src)))


class OnceMore(nn.Module):
    """torch's pre-norm layer has its two skips; whoever wrote the loop gave it a third."""

    def __init__(self, repeats=6, d=32):
        super().__init__()
        self.embed, self.proj, self.repeats = nn.Embedding(50, d), nn.Linear(d, 50), repeats
        self.layer = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.1, batch_first=True, norm_first=True)

    def forward(self, src):
        memory = self.embed(src)
        for _ in range(self.repeats):
            residual = memory
            memory = self.layer(memory)
            memory = residual + memory
        return self.proj(memory)


def ouro(total_ut_steps=4):
    return UniversalForCausalLM(UniversalConfig(total_ut_steps=total_ut_steps))


def lora(num_loops=7):
    return RelaxedRecursive(UniversalConfig(num_loops=num_loops), scaled=False)


def lora_scaled(num_loops=7):
    return RelaxedRecursive(UniversalConfig(num_loops=num_loops), scaled=True)


def albert(num_hidden_layers=6):
    from transformers import AlbertConfig, AlbertModel

    return AlbertModel(
        AlbertConfig(
            vocab_size=64,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )


def torch_encoder(num_layers=6):
    return SharedEncoder(num_layers)


def once_more(repeats=6):
    return OnceMore(repeats)


TRUTHS = {
    "ouro": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=4,
        layers=2,
        level="medium",
        kind="recurrent depth",
        watch="UniversalModel.forward:hidden_states",
        why="the model's norm stands between the steps",
    ),
    "lora": dict(
        codes=["unscaled-residual"],
        loops=7,
        layers=1,
        level="medium",
        kind="adapter",
        watch="RelaxedRecursive.forward:hidden",
        place={"unscaled-residual": ["hidden = hidden + self.attention|qkv|o", "hidden = hidden + self.fc_out|fc_out"]},
        why="private adapters that are meant, and full updates of a matrix that is mostly shared",
    ),
    "lora_scaled": dict(
        codes=[],
        loops=7,
        layers=1,
        level="medium",
        kind="adapter",
        watch="RelaxedRecursive.forward:hidden",
        why="the same by 1/N",
    ),
    "albert": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=6,
        layers=1,
        level="easy",
        kind="library",
        watch="AlbertTransformer.forward:hidden_states",
        why="the library's ALBERT: one post-norm layer, six times",
    ),
    "torch_encoder": dict(
        codes=["untied"],
        other=["untied", "not-looped"],
        level="easy",
        kind="tying",
        watch="TransformerEncoder.forward:output",
        why="nn.TransformerEncoder deep-copies the layer that it is given",
    ),
    "once_more": dict(
        codes=["nested-skip"],
        law="exponential",
        loops=6,
        layers=1,
        level="easy",
        kind="outer skip",
        watch="OnceMore.forward:memory",
        place={"nested-skip": ["memory = residual + memory|layer"]},
        mend="edit",
        why="a skip around a layer that has its own: 2^6",
    ),
}
