"""Switch-style feed-forward, one router and one bank for all passes; tokens over capacity go past the experts."""

import torch
from torch import nn
from torch.nn.functional import one_hot, scaled_dot_product_attention


class SwitchFF(nn.Module):
    def __init__(self, d_model, n_experts=4, capacity_factor=1.5):
        super().__init__()
        self.capacity_factor, self.n_experts = capacity_factor, n_experts
        self.switch = nn.Linear(d_model, n_experts)
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(d_model, 3 * d_model), nn.ReLU(), nn.Linear(3 * d_model, d_model))
                for _ in range(n_experts)
            ]
        )
        for expert in self.experts:
            for layer in (expert[0], expert[2]):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")

    def forward(self, x):
        batch_size, seq_len, d_model = x.shape
        x = x.reshape(-1, d_model)
        routes = torch.softmax(self.switch(x), dim=-1).argmax(dim=-1)
        indexes_list = [torch.eq(routes, i).nonzero(as_tuple=True)[0] for i in range(self.n_experts)]
        final_output = x.new_zeros(x.shape)
        capacity = int(self.capacity_factor * len(x) / self.n_experts)
        indexes_list = [ids[:capacity] for ids in indexes_list]
        for expert, ids in zip(self.experts, indexes_list):
            if len(ids):
                final_output[ids] = expert(x[ids])
        load = one_hot(routes, self.n_experts).float().mean(0)
        return final_output.view(batch_size, seq_len, d_model), load


class Layer(nn.Module):
    def __init__(self, d_model, heads, shrink):
        super().__init__()
        self.heads, self.shrink = heads, shrink
        self.norm_self_attn, self.norm_ff = nn.LayerNorm([d_model]), nn.LayerNorm([d_model])
        self.qkv, self.output = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.feed_forward = SwitchFF(d_model)

    def self_attn(self, z):
        b, t, d = z.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(z).chunk(3, -1))
        return self.output(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))

    def forward(self, x):
        z = self.norm_self_attn(x)
        x = x + self.shrink * self.self_attn(z)
        z = self.norm_ff(x)
        ff, load = self.feed_forward(z)
        return x + ff, load


class SwitchTransformer(nn.Module):
    def __init__(self, n_tokens=90, d_model=32, passes=8):
        super().__init__()
        self.embedding, self.passes = nn.Embedding(n_tokens, d_model), passes
        self.layer = Layer(d_model, 4, 1 / passes)
        self.norm, self.generator = nn.LayerNorm(d_model), nn.Linear(d_model, n_tokens)

    def forward(self, x):
        x = self.embedding(x)
        loads = []
        for _ in range(self.passes):
            x, load = self.layer(x)
            loads.append(load)
        return self.generator(self.norm(x)), torch.stack(loads)


def switch_half_scaled(passes=8):
    return SwitchTransformer(passes=passes), torch.randint(0, 90, (2, 16), generator=torch.Generator().manual_seed(51))


TRUTHS = {
    "switch_half_scaled": dict(
        codes=["unscaled-residual"],
        loops=8,
        layers=1,
        watch="SwitchTransformer.forward:x",
        place={"unscaled-residual": ["return x + ff, load|feed_forward"]},
        kind="one branch of two",
        level="hard",
        why="attention carries 1/N, the routed experts carry nothing; the number of experts called can change with the data",
    ),
}
