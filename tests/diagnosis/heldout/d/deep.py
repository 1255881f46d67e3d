"""Recurrent depth: numbers of visits that are drawn at every step of training, configs that name another number, and a frozen cache of keys."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class SDPA(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.heads, self.Wqkv, self.proj = heads, nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)

    def forward(self, x):
        B, S, E = x.shape
        q, k, v = self.Wqkv(x).view(B, S, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, S, E))


class GatedMLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc, self.out = nn.Linear(d, 4 * d, bias=False), nn.Linear(2 * d, d, bias=False)

    def forward(self, x):
        a, b = self.fc(x).chunk(2, -1)
        return self.out(F.silu(a) * b)


class SandwichBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (nn.RMSNorm(d, eps=1e-6) for _ in range(4))
        self.attn, self.mlp = SDPA(d), GatedMLP(d)

    def forward(self, x):
        x = self.norm_2(self.attn(self.norm_1(x)) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class PreNormBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.attn, self.mlp = SDPA(d), GatedMLP(d)

    def forward(self, x, eps=1.0):
        x = x + eps * self.attn(self.norm_1(x))
        return x + eps * self.mlp(self.norm_2(x))


class RecurrentGPT(nn.Module):
    """Depth drawn from a log-normal Poisson in training, the last `mean_backprop_depth` visits with gradient; a fixed depth in evaluation, all of it without gradient."""

    def __init__(self, mean_recurrence=8, mean_backprop_depth=3, d=32):
        super().__init__()
        self.config = SimpleNamespace(mean_recurrence=mean_recurrence, mean_backprop_depth=mean_backprop_depth)
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(64, d),
                prelude=nn.ModuleList([SandwichBlock(d)]),
                adapter=nn.Linear(2 * d, d, bias=False),
                core_block=nn.ModuleList([SandwichBlock(d), SandwichBlock(d)]),
                coda=nn.ModuleList([SandwichBlock(d)]),
                ln_f=nn.RMSNorm(d, eps=1e-6),
            )
        )
        self.lm_head = nn.Linear(d, 64, bias=False)

    @torch.no_grad()
    def randomized_iteration_sampler(self):
        t, s = max(self.config.mean_recurrence - self.config.mean_backprop_depth, 0), self.config.mean_backprop_depth
        if not self.training:
            return self.config.mean_recurrence, 0
        sigma = 0.5
        rate = torch.zeros(1).log_normal_(mean=math.log(t + s) - sigma**2 / 2, std=sigma)
        p = int(torch.poisson(rate)) + 1
        return max(p - s, 0), min(s, p)

    def core_block_forward(self, x, e):
        x = self.transformer.adapter(torch.cat([x, e], dim=-1))
        for block in self.transformer.core_block:
            x = block(x)
        return x

    def iterate_forward(self, e, num_steps=None):
        x = torch.randn_like(e) * math.sqrt(2 / 5)
        no_grad, with_grad = self.randomized_iteration_sampler() if num_steps is None else (0, num_steps)
        with torch.no_grad():
            for _ in range(no_grad):
                x = self.core_block_forward(x, e)
        for _ in range(with_grad):
            x = self.core_block_forward(x, e)
        return self.transformer.ln_f(x)

    def forward(self, input_ids, labels=None, num_steps=None):
        x = self.transformer.wte(input_ids)
        for block in self.transformer.prelude:
            x = block(x)
        x = self.iterate_forward(x, num_steps)
        for block in self.transformer.coda:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) if labels is not None else torch.zeros(())
        return {"loss": loss, "logits": logits}


class Sampled(nn.Module):
    """Pre-norm, the depth drawn in training; every visit is scaled by the number that is really made."""

    def __init__(self, mean_depth=8, d=32):
        super().__init__()
        self.wte, self.blocks, self.norm = (
            nn.Embedding(64, d),
            nn.ModuleList([PreNormBlock(d) for _ in range(2)]),
            nn.RMSNorm(d),
        )
        self.head, self.mean_depth = nn.Linear(d, 64, bias=False), mean_depth

    def depth(self):
        if self.training:
            return int(torch.randint(max(1, self.mean_depth // 2), 3 * self.mean_depth // 2 + 1, ()))
        return self.mean_depth

    def forward(self, input_ids):
        x, r = self.wte(input_ids), self.depth()
        eps = 1 / (r * len(self.blocks) ** 0.5)
        for _ in range(r):
            for block in self.blocks:
                x = block(x, eps)
        return self.head(self.norm(x))


class Configured(nn.Module):
    """The factor comes from the config's `n_layer`, of the time when there were three distinct layers."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.wte, self.block, self.norm = (
            nn.Embedding(64, cfg["n_embd"]),
            PreNormBlock(cfg["n_embd"]),
            nn.RMSNorm(cfg["n_embd"]),
        )
        self.head = nn.Linear(cfg["n_embd"], 64, bias=False)
        for p in self.block.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=1.15 * p.shape[1] ** -0.5)
        self.res_scale = 1 / cfg["n_layer"]

    def forward(self, input_ids):
        x = self.wte(input_ids)
        for _ in range(self.cfg["n_recur"]):
            x = self.block(x, self.res_scale)
        return self.head(self.norm(x))


class TrainShort(Configured):
    """Four visits in training and 24 in evaluation, by the factor of training."""

    def forward(self, input_ids):
        x = self.wte(input_ids)
        for _ in range(self.cfg["n_layer"] if self.training else self.cfg["n_recur"]):
            x = self.block(x, self.res_scale)
        return self.head(self.norm(x))


class FirstKeys(nn.Module):
    """Keys and values are those of the first visit; later visits bring new queries only (a cache that does not grow with depth)."""

    def __init__(self, n_loop=6, d=32):
        super().__init__()
        self.wte, self.n_loop = nn.Embedding(64, d), n_loop
        self.ln_1, self.ln_2, self.q, self.kv, self.o = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, d),
            nn.Linear(d, 2 * d),
            nn.Linear(d, d),
        )
        self.mlp, self.ln_f, self.head = GatedMLP(d), nn.LayerNorm(d), nn.Linear(d, 64)

    def forward(self, ids):
        x, cache = self.wte(ids), None
        for _ in range(self.n_loop):
            h = self.ln_1(x)
            if cache is None:
                cache = self.kv(h).chunk(2, -1)
            a = F.scaled_dot_product_attention(self.q(h).unsqueeze(1), *(c.unsqueeze(1) for c in cache), is_causal=True)
            x = x + self.o(a.squeeze(1)) / self.n_loop
            x = x + self.mlp(self.ln_2(x)) / self.n_loop
        return self.head(self.ln_f(x))


class FirstValues(nn.Module):
    """A value residual: the values of every visit are half those of the first."""

    def __init__(self, n_loop=7, d=32):
        super().__init__()
        self.wte, self.n_loop, self.mix = nn.Embedding(64, d), n_loop, nn.Parameter(torch.tensor(0.5))
        self.ln_1, self.ln_2, self.qkv, self.o = nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp, self.ln_f, self.head = GatedMLP(d), nn.LayerNorm(d), nn.Linear(d, 64)

    def forward(self, ids):
        x, v1 = self.wte(ids), None
        for _ in range(self.n_loop):
            q, k, v = self.qkv(self.ln_1(x)).unsqueeze(1).chunk(3, -1)
            v1 = v if v1 is None else v1
            v = (1 - self.mix) * v + self.mix * v1
            x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)) / self.n_loop
            x = x + self.mlp(self.ln_2(x)) / self.n_loop
        return self.head(self.ln_f(x))


class ParallelLoop(nn.Module):
    """Each loop reads the embedding plus the last loop's result of the token before (cross-loop parallel decoding); updates by 1/N."""

    def __init__(self, loops=8, d=32):
        super().__init__()
        self.wte, self.block, self.loops, self.norm, self.head = (
            nn.Embedding(64, d),
            PreNormBlock(d),
            loops,
            nn.RMSNorm(d),
            nn.Linear(d, 64),
        )

    def forward(self, ids):
        e = self.wte(ids)
        h = self.block(e, 1 / self.loops)
        for _ in range(self.loops - 1):
            shifted = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
            h = self.block(e + shifted, 1 / self.loops)
        return self.head(self.norm(h))


def huginn(mean_recurrence=8):
    return RecurrentGPT(mean_recurrence)


def sampled(mean_depth=8):
    return Sampled(mean_depth)


def configured():
    return Configured({"n_embd": 32, "n_layer": 3, "n_recur": 18})


def train_short():
    return TrainShort({"n_embd": 32, "n_layer": 4, "n_recur": 24})


def first_keys(n_loop=6):
    return FirstKeys(n_loop)


def first_values(n_loop=7):
    return FirstValues(n_loop)


def parallel_loop(loops=8):
    return ParallelLoop(loops)


TRUTHS = {
    "huginn": dict(
        codes=["norm-bounded", "train-eval-differ"],
        other=["norm-bounded", "train-eval-differ", "truncated-gradient"],
        law="bounded",
        loops=8,
        layers=2,
        level="hard",
        kind="recurrent depth",
        watch="RecurrentGPT.iterate_forward:x",
        why="two norms on the stream in each layer; 8 visits in evaluation, another number in training; in evaluation no visit has a gradient, in training 3 have",
    ),
    "sampled": dict(
        codes=[],
        other=["train-eval-differ"],
        loops=8,
        layers=2,
        level="medium",
        kind="sampled loops",
        watch="Sampled.forward:x",
        why="whatever number is drawn, the factor follows it",
    ),
    "configured": dict(
        codes=["unscaled-residual"],
        loops=18,
        layers=1,
        level="medium",
        kind="wrong N",
        watch="Configured.forward:x",
        place={"unscaled-residual": ["x = x + eps * self.attn|attn", "return x + eps * self.mlp|mlp"]},
        why="a third at eighteen visits is six times 1/N",
    ),
    "train_short": dict(
        codes=["train-eval-differ", "unscaled-residual"],
        loops=24,
        layers=1,
        level="hard",
        kind="wrong N",
        watch="TrainShort.forward:x",
        why="a quarter is right for the four visits of training, not for the 24 of evaluation",
    ),
    "first_keys": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="cache",
        watch="FirstKeys.forward:x",
        why="1/N; the cached keys are read by every branch and added to nothing",
    ),
    "first_values": dict(
        codes=[],
        loops=7,
        layers=1,
        level="medium",
        kind="cache",
        watch="FirstValues.forward:x",
        why="1/N; the first values enter a branch only",
    ),
    "parallel_loop": dict(
        codes=["unscaled-injection"],
        loops=8,
        layers=1,
        level="hard",
        kind="injection",
        watch="ParallelLoop.forward:h",
        place={"unscaled-injection": ["h = self.block(e + shifted|e = self.wte"]},
        why="the embedding is added at every visit, each time a token further: a sum of independent parts, so like the root of N",
    ),
}
