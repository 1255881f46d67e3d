"""Latent reasoning by recurrent depth, after the 3.5B model that samples its number of steps: prelude, core, coda, adapter on concat."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class RavenConfig:
    n_embd: int = 32
    n_heads: int = 2
    vocab_size: int = 80
    intermediate_size: int = 64
    n_layers_in_prelude: int = 1
    n_layers_in_recurrent_block: int = 2
    n_layers_in_coda: int = 1
    mean_recurrence: int = 8
    mean_backprop_depth: int = 4
    state_std: float = 0.4
    norm_eps: float = 1e-6
    init: dict[str, Any] = field(default_factory=dict)

    @property
    def effective_expected_depth(self):
        core = self.n_layers_in_recurrent_block * self.mean_recurrence
        return self.n_layers_in_prelude + core + self.n_layers_in_coda


class SandwichBlock(nn.Module):
    """norm(x + attn(norm(x))), norm(x + mlp(norm(x)))"""

    expanded = False

    def __init__(self, config):
        super().__init__()
        d = config.n_embd
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (nn.RMSNorm(d, eps=config.norm_eps) for _ in range(4))
        self.Wqkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.fc = nn.Linear(d, 2 * config.intermediate_size, bias=False)
        self.fc_out = nn.Linear(config.intermediate_size, d, bias=False)
        self.heads = config.n_heads
        std = math.sqrt(2 / (5 * d))
        for linear in (self.Wqkv, self.fc):
            nn.init.trunc_normal_(linear.weight, std=std)
        for linear in (self.proj, self.fc_out):
            nn.init.trunc_normal_(linear.weight, std=std / math.sqrt(2 * config.effective_expected_depth))

    def attn(self, x, mask):
        B, S, E = x.shape
        q, k, v = self.Wqkv(x).view(B, S, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=mask is None, attn_mask=mask)
        return self.proj(y.transpose(1, 2).reshape(B, S, E))

    def mlp(self, x):
        gate, value = self.fc(x).chunk(2, dim=-1)
        return self.fc_out(nn.functional.silu(gate) * value)

    def forward(self, x, mask=None):
        x = self.norm_2(self.attn(self.norm_1(x), mask) + x)
        x = self.norm_4(self.mlp(self.norm_3(x)) + x)
        return x


class RavenForCausalLM(nn.Module):
    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.config = config
        d = config.n_embd
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, d),
                prelude=nn.ModuleList(SandwichBlock(config) for _ in range(config.n_layers_in_prelude)),
                adapter=nn.Linear(2 * d, d, bias=False),
                core_block=nn.ModuleList(SandwichBlock(config) for _ in range(config.n_layers_in_recurrent_block)),
                coda=nn.ModuleList(SandwichBlock(config) for _ in range(config.n_layers_in_coda)),
                ln_f=nn.RMSNorm(d, eps=config.norm_eps),
            )
        )
        nn.init.normal_(self.transformer.wte.weight, std=math.sqrt(2 / (5 * d)))
        self.emb_scale = math.sqrt(d)
        self.lm_head = nn.Linear(d, config.vocab_size, bias=False)

    def initialize_state(self, input_embeds):
        x = torch.randn_like(input_embeds)
        std = self.config.state_std
        torch.nn.init.trunc_normal_(x, mean=0.0, std=std, a=-3 * std, b=3 * std)
        return x

    @torch._dynamo.disable(recursive=False)
    def randomized_iteration_sampler(self):
        """n without and k with gradients: a Poisson whose rate is log-normal."""
        t = max(self.config.mean_recurrence - self.config.mean_backprop_depth, 0)
        s = self.config.mean_backprop_depth
        if not self.training:
            return 0, self.config.mean_recurrence
        sigma = 0.5
        mu = math.log(t + s) - sigma**2 / 2
        rate = torch.zeros((1,)).log_normal_(mean=mu, std=sigma)
        p = int(torch.poisson(rate).item()) + 1
        n = max(p - s, 0)
        return n, min(s, p)

    def core_block_forward(self, x, input_embeds, mask):
        x = self.transformer.adapter(torch.cat([x, input_embeds], dim=-1))
        for block in self.transformer.core_block:
            x = block(x, mask)
        return x

    def iterate_forward(self, input_embeds, mask, num_steps: int | None = None):
        x = self.initialize_state(input_embeds)
        no_grad, with_grad = self.randomized_iteration_sampler() if num_steps is None else (0, num_steps)
        with torch.no_grad():
            for _ in range(no_grad):
                x = self.core_block_forward(x, input_embeds, mask)
        for _ in range(with_grad):
            x = self.core_block_forward(x, input_embeds, mask)
        return self.transformer.ln_f(x)

    def forward(self, input_ids, num_steps: int | None = None):
        input_embeds = self.transformer.wte(input_ids) * self.emb_scale
        for block in self.transformer.prelude:
            input_embeds = block(input_embeds)
        x = self.iterate_forward(input_embeds, None, num_steps)
        for block in self.transformer.coda:
            x = block(x)
        x = self.transformer.ln_f(x)
        return {"logits": self.lm_head(x).float(), "loss": torch.as_tensor(0.0), "latent_states": x}


def raven():
    return RavenForCausalLM(RavenConfig()), torch.randint(0, 80, (2, 12), generator=torch.Generator().manual_seed(74))


TRUTHS = {
    "raven": dict(
        codes=["norm-bounded", "train-eval-differ"],
        may=["truncated-gradient"],
        law="bounded",
        loops=8,
        layers=2,
        watch="RavenForCausalLM.iterate_forward:x",
        kind="recurrent depth",
        level="medium",
        why="a norm after every addition; N is 8 in evaluation and sampled in training (where the first n have no gradient); output "
        "projections are small by init, but no factor stands in the forward and the norms take the size",
    ),
}
