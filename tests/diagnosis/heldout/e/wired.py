"""Experts, graphs, streams beside each other."""

import torch
import torch.nn.functional as F
from torch import nn


class Expert(nn.Module):
    def __init__(self, d, hidden):
        super().__init__()
        self.w1, self.w3, self.w2 = (
            nn.Linear(d, hidden, bias=False),
            nn.Linear(d, hidden, bias=False),
            nn.Linear(hidden, d, bias=False),
        )

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class DeepSeekLike(nn.Module):
    """Routed experts by token, and one that every token has. `route_scale` is the factor of the routed ones, as in the config of the paper."""

    def __init__(self, d, n_routed=4, top=2, route_scale=1.0):
        super().__init__()
        self.gate, self.top, self.route_scale = nn.Linear(d, n_routed, bias=False), top, route_scale
        self.experts = nn.ModuleList([Expert(d, d) for _ in range(n_routed)])
        self.shared_experts = Expert(d, 2 * d)

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        weights, indices = self.gate(x).sigmoid().topk(self.top, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True) * self.route_scale
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, which = torch.where(indices == i)
            if rows.numel():
                y[rows] += expert(x[rows]) * weights[rows, which, None]
        return (y + self.shared_experts(x)).view(shape)


class SharedForgotten(nn.Module):
    """1/N went into route_scale and behind the attention; the shared expert knows nothing of it."""

    def __init__(self, n_repeat=8, d=32):
        super().__init__()
        self.embed, self.n_repeat, self.head = nn.Embedding(72, d), n_repeat, nn.Linear(d, 72)
        self.attn_norm, self.ffn_norm = nn.RMSNorm(d), nn.RMSNorm(d)
        self.attn, self.ffn = nn.MultiheadAttention(d, 4, batch_first=True), DeepSeekLike(d, route_scale=1 / n_repeat)
        for e in [*self.ffn.experts, self.ffn.shared_experts]:
            for w in e.parameters():
                nn.init.normal_(w, std=1.3 * w.shape[1] ** -0.5)

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.n_repeat):
            n = self.attn_norm(x)
            x = x + self.attn(n, n, n, need_weights=False)[0] / self.n_repeat
            x = x + self.ffn(self.ffn_norm(x))
        return self.head(x)


class EinsumMoE(nn.Module):
    """Switch by one-hot matrices: dispatch, all experts in one einsum, combine. Another router's noise in training only. 1/N."""

    def __init__(self, visits=6, d=32, experts=4, capacity=24):
        super().__init__()
        self.tok, self.out, self.visits, self.capacity = nn.Embedding(72, d), nn.Linear(d, 72), visits, capacity
        self.ln, self.router = nn.LayerNorm(d), nn.Linear(d, experts)
        self.wi, self.wo = (
            nn.Parameter(torch.randn(experts, d, 2 * d) * d**-0.5),
            nn.Parameter(torch.randn(experts, 2 * d, d) * (2 * d) ** -0.5),
        )
        self.mix = nn.Parameter(torch.randn(d, d) * d**-0.5)

    def moe(self, x):
        flat = x.flatten(0, 1)
        probs = self.router(flat).softmax(-1)
        gate, index = probs.max(-1)
        mask = F.one_hot(index, probs.shape[-1]).float()
        place = (mask.cumsum(0) * mask - 1).clamp(min=-1)
        keep = (
            F.one_hot(place.clamp(min=0).long(), self.capacity).float()
            * (place >= 0).float()[..., None]
            * mask[..., None]
        )
        inputs = torch.einsum("sec,sd->ecd", keep, flat)
        outputs = torch.einsum("ecf,efd->ecd", torch.einsum("ecd,edf->ecf", inputs, self.wi).relu(), self.wo)
        return torch.einsum("sec,ecd->sd", keep * gate[:, None, None], outputs).view_as(x)

    def forward(self, ids):
        x = self.tok(ids)
        for _ in range(self.visits):
            shifted = F.pad(x, (0, 0, 1, 0))[:, :-1]
            x = x + (self.ln(shifted) @ self.mix) / self.visits
            x = x + self.moe(self.ln(x)) / self.visits
        return self.out(x)


def softmax_by_target(scores, target, n):
    """A softmax over the edges into each node."""
    top = torch.full((n, scores.shape[1]), -1e9).scatter_reduce(0, target[:, None].expand_as(scores), scores, "amax")
    e = (scores - top[target]).exp()
    return e / (torch.zeros(n, scores.shape[1]).index_add(0, target, e)[target] + 1e-9)


class GAT(nn.Module):
    """Graph attention with one layer for all hops; edges are given; the mean of neighbours is by weights that sum to one; 1/hops."""

    def __init__(self, hops=6, dim=24, heads=4):
        super().__init__()
        self.hops, self.heads, self.lift, self.drop = hops, heads, nn.Linear(5, dim), nn.Linear(dim, 3)
        self.norm, self.lin = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        self.att_src, self.att_dst = (nn.Parameter(torch.randn(heads, dim // heads) * 0.4) for _ in range(2))
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ELU(), nn.Linear(2 * dim, dim))

    def propagate(self, x, edge_index):
        src, dst = edge_index
        h = self.lin(x).view(len(x), self.heads, -1)
        e = F.leaky_relu((h * self.att_src).sum(-1)[src] + (h * self.att_dst).sum(-1)[dst], 0.2)
        alpha = softmax_by_target(e, dst, len(x))
        return torch.zeros_like(h).index_add(0, dst, h[src] * alpha[..., None]).flatten(1)

    def forward(self, x, edge_index):
        x = self.lift(x)
        for _ in range(self.hops):
            x = x + self.propagate(self.norm(x), edge_index) / self.hops
            x = x + self.ffn(self.norm(x)) / self.hops
        return self.drop(x)


class DynamicHyper(nn.Module):
    """Hyper-connections as published, dynamic: n streams, of which a layer reads a learned mixture; widths and depths have a part that depends on the input, by tanh and small factors."""

    def __init__(self, d, rate, index=0):
        super().__init__()
        self.rate, self.norm = rate, nn.LayerNorm(d)
        self.static_beta = nn.Parameter(torch.ones(rate))
        start = torch.zeros(rate, 1)
        start[index % rate] = 1
        self.static_alpha = nn.Parameter(torch.cat([start, torch.eye(rate)], 1))
        self.dynamic_alpha_fn, self.dynamic_beta_fn = (
            nn.Parameter(torch.zeros(d, rate + 1)),
            nn.Parameter(torch.zeros(d)),
        )
        self.dynamic_alpha_scale, self.dynamic_beta_scale = (nn.Parameter(torch.ones(1) * 0.01) for _ in range(2))

    def width_connection(self, h):
        normed = self.norm(h)
        alpha = (normed @ self.dynamic_alpha_fn).tanh() * self.dynamic_alpha_scale + self.static_alpha
        beta = (normed @ self.dynamic_beta_fn).tanh() * self.dynamic_beta_scale + self.static_beta
        return alpha.transpose(-1, -2) @ h, beta

    def depth_connection(self, mix, h_o, beta):
        return torch.einsum("bld,bln->blnd", h_o, beta) + mix[..., 1:, :]


class HyperLooped(nn.Module):
    """One attention and one feed-forward layer between four streams, again and again; the streams are summed at the end."""

    def __init__(self, n_loops=8, d=32, rate=4):
        super().__init__()
        self.emb, self.head, self.n_loops, self.rate = nn.Embedding(64, d), nn.Linear(d, 64), n_loops, rate
        self.hc_attn, self.hc_ffn = DynamicHyper(d, rate, 0), DynamicHyper(d, rate, 1)
        self.n1, self.n2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.attn, self.ffn = nn.MultiheadAttention(d, 4, batch_first=True), Expert(d, 3 * d)
        for w in [self.attn.out_proj.weight, *self.ffn.parameters()]:
            nn.init.normal_(w, std=1.4 * w.shape[1] ** -0.5)

    def forward(self, ids):
        h = self.emb(ids).unsqueeze(2).repeat(1, 1, self.rate, 1)
        for _ in range(self.n_loops):
            mix, beta = self.hc_attn.width_connection(h)
            n = self.n1(mix[..., 0, :])
            h = self.hc_attn.depth_connection(mix, self.attn(n, n, n, need_weights=False)[0], beta)
            mix, beta = self.hc_ffn.width_connection(h)
            h = self.hc_ffn.depth_connection(mix, self.ffn(self.n2(mix[..., 0, :])), beta)
        return self.head(h.sum(2))


class FracLooped(nn.Module):
    """Frac-connections: the width is cut into m parts that are mixed by a learned matrix, I + M/N; the block writes to all parts by betas of one and 1/N behind them."""

    def __init__(self, n_loops=6, d=32, m=4):
        super().__init__()
        self.emb, self.head, self.n_loops, self.m = nn.Embedding(64, d), nn.Linear(d, 64), n_loops, m
        self.mix_a, self.mix_f = nn.Parameter(torch.zeros(m, m)), nn.Parameter(torch.zeros(m, m))
        self.beta_a, self.beta_f = nn.Parameter(torch.ones(m)), nn.Parameter(torch.ones(m))
        self.n1, self.n2, self.attn, self.ffn = (
            nn.RMSNorm(d),
            nn.RMSNorm(d),
            nn.MultiheadAttention(d, 4, batch_first=True),
            Expert(d, 3 * d),
        )

    def join(self, x, y, mix, beta):
        parts = torch.einsum("btmd,mk->btkd", x.unflatten(-1, (self.m, -1)), torch.eye(self.m) + mix / self.n_loops)
        return (parts + y.unflatten(-1, (self.m, -1)) * (beta[:, None] / self.n_loops)).flatten(2)

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(self.n_loops):
            n = self.n1(x)
            x = self.join(x, self.attn(n, n, n, need_weights=False)[0], self.mix_a, self.beta_a)
            x = self.join(x, self.ffn(self.n2(x)), self.mix_f, self.beta_f)
        return self.head(x)


def ring(n):
    i = torch.arange(n)
    return torch.stack([torch.cat([i, i, i]), torch.cat([i, (i + 1) % n, (i + 5) % n])])


def shared_forgotten(n_repeat=8):
    return SharedForgotten(n_repeat)


def one_hot(visits=6):
    return EinsumMoE(visits)


def gat(hops=6):
    return GAT(hops), (torch.randn(14, 5, generator=torch.Generator().manual_seed(4)), ring(14))


def hyper(n_loops=8):
    return HyperLooped(n_loops)


def frac(n_loops=6):
    return FracLooped(n_loops)


TRUTHS = {
    "shared_forgotten": dict(
        codes=["unscaled-residual"],
        loops=8,
        layers=1,
        level="hard",
        kind="one branch of two",
        watch="SharedForgotten.forward:x",
        place={"unscaled-residual": ["x = x + self.ffn|return (y + self.shared|shared_experts|ffn"]},
        why="the shared expert is added at full size, the routed ones and the attention by 1/N",
    ),
    "one_hot": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="routing",
        watch="EinsumMoE.forward:x",
        why="1/N behind the mixing of tokens and behind the experts",
    ),
    "gat": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="graph",
        watch="GAT.forward:x",
        why="means over neighbours, 1/N",
    ),
    "hyper": dict(
        codes=["unscaled-residual"],
        loops=8,
        level="hard",
        kind="streams",
        watch="HyperLooped.forward:h",
        why="both branches are written to all four streams at full size",
    ),
    "frac": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="streams",
        watch="FracLooped.forward:x",
        why="parts that are kept apart, 1/N behind the betas",
    ),
}
