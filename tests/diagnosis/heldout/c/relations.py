"""Graphs, point clouds and sets that are read again and again."""

import torch
import torch.nn.functional as F
from torch import nn


def polygon(n=10):
    a = torch.zeros(n, n)
    i = torch.arange(n)
    a[i, (i + 1) % n] = a[i, (i - 1) % n] = a[i, (i + n // 2) % n] = 1.0
    return a


class GCNII(nn.Module):
    """Deep graph convolution: a part of the first features at every layer, a matrix near the identity, one matrix for all layers."""

    def __init__(self, num_layers=8, d=24, alpha=0.2, beta=0.4):
        super().__init__()
        self.fc0, self.fc1, self.weight = nn.Linear(6, d), nn.Linear(d, 3), nn.Parameter(torch.empty(d, d))
        nn.init.orthogonal_(self.weight)
        self.num_layers, self.alpha, self.beta = num_layers, alpha, beta

    def forward(self, x, adj):
        deg = (adj + torch.eye(len(adj))).sum(-1)
        a_hat = (adj + torch.eye(len(adj))) / (deg[:, None] * deg[None]).sqrt()
        h0 = h = F.relu(self.fc0(x))
        for _ in range(self.num_layers):
            support = (1 - self.alpha) * a_hat @ h + self.alpha * h0
            h = F.relu((1 - self.beta) * support + self.beta * support @ self.weight)
        return F.log_softmax(self.fc1(h), -1)


class APPNP(nn.Module):
    """Predict, then propagate: all weights act before the iteration, which has none."""

    def __init__(self, K=10, alpha=0.1):
        super().__init__()
        self.lin1, self.lin2, self.K, self.alpha = nn.Linear(6, 32), nn.Linear(32, 3), K, alpha

    def forward(self, x, adj):
        a_hat = adj / adj.sum(-1, keepdim=True)
        h = z = self.lin2(F.relu(self.lin1(x)))
        for _ in range(self.K):
            z = (1 - self.alpha) * a_hat @ z + self.alpha * h
        return F.log_softmax(z, -1)


class EGNN(nn.Module):
    """Equivariant message passing: features and places are moved together, both by 1/rounds."""

    def __init__(self, rounds=6, d=16):
        super().__init__()
        self.kind = nn.Embedding(5, d)
        self.phi_e = nn.Sequential(nn.Linear(2 * d + 1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.phi_x = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        self.phi_h = nn.Sequential(nn.Linear(d + 32, 32), nn.SiLU(), nn.Linear(32, d))
        self.energy, self.rounds = nn.Linear(d, 1), rounds

    def visit(self, state):
        h, x = state
        n = h.shape[-2]
        apart = x.unsqueeze(-2) - x.unsqueeze(-3)
        left, right = h.unsqueeze(-2).expand(-1, -1, n, -1), h.unsqueeze(-3).expand(-1, n, -1, -1)
        m = self.phi_e(torch.cat([left, right, apart.pow(2).sum(-1, keepdim=True)], -1))
        x = x + (apart * self.phi_x(m)).mean(-2) / self.rounds
        h = h + self.phi_h(torch.cat([h, m.mean(-2)], -1)) / self.rounds
        return h, x

    def forward(self, atoms):
        state = self.kind(atoms["numbers"]), atoms["positions"]
        for _ in range(self.rounds):
            state = self.visit(state)
        return {"energy": self.energy(state[0]).sum(-2), "positions": state[1]}


class Perceiver(nn.Module):
    """Latents read a byte array, then themselves, then think; the same weights in every repetition, at full size."""

    def __init__(self, depth=9, n=5, d=32):
        super().__init__()
        self.inputs, self.latents, self.depth = nn.Linear(4, d), nn.Parameter(torch.randn(n, d)), depth
        self.cross_attn, self.latent_attn = (nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(2))
        self.latent_ff = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        for layer in (self.latent_ff[0], self.latent_ff[2]):
            nn.init.xavier_normal_(layer.weight, gain=1.5)
        self.ln = nn.ModuleDict({name: nn.LayerNorm(d) for name in ("context", "cross", "self", "ff", "out")})
        self.to_logits = nn.Linear(d, 6)

    def forward(self, byte_array):
        ctx = self.ln["context"](self.inputs(byte_array))
        x = self.latents[None].repeat(len(ctx), 1, 1)
        for _ in range(self.depth):
            x = x + self.cross_attn(self.ln["cross"](x), ctx, ctx, need_weights=False)[0]
            y = self.ln["self"](x)
            x = x + self.latent_attn(y, y, y, need_weights=False)[0]
            x = x + self.latent_ff(self.ln["ff"](x))
        return self.to_logits(self.ln["out"](x).mean(1))


class Labels(nn.Module):
    """A set net told what to make: the class vector is added, in place, at every visit; the branches have their `rate`."""

    def __init__(self, n_blocks, rate, d=32):
        super().__init__()
        self.points, self.label, self.n_blocks = nn.Linear(3, d), nn.Embedding(4, d), n_blocks
        self.norm, self.pool = nn.LayerNorm(d), nn.Linear(d, d)
        self.ff, self.out = nn.Sequential(nn.Linear(2 * d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)), nn.Linear(d, 3)
        for i in (0, 2):
            nn.init.kaiming_normal_(self.ff[i].weight)
        self.rate = rate

    def forward(self, batch):
        x = self.points(batch["points"]) + 0.0
        c = self.label(batch["class"]).unsqueeze(1)
        for _ in range(self.n_blocks):
            x += c
            y = self.norm(x)
            pooled = self.pool(y).amax(1, keepdim=True).expand_as(y)
            x = x + self.ff(torch.cat([y, pooled], -1)).mul(self.rate)
        return self.out(x)


class Potts(nn.Module):
    """Belief propagation with learned couplings: messages are log-probabilities, damped by half."""

    def __init__(self, bp_iters=8, q=4):
        super().__init__()
        self.J, self.unary, self.bp_iters = nn.Parameter(0.8 * torch.randn(q, q)), nn.Linear(6, q), bp_iters

    def forward(self, x, adj):
        phi = self.unary(x)
        m = torch.zeros(len(adj), len(adj), phi.shape[-1]) - torch.tensor(float(phi.shape[-1])).log()
        for _ in range(self.bp_iters):
            inward = torch.einsum("ji,jiq->iq", adj, m)
            belief = phi[:, None] + inward[:, None] - m.transpose(0, 1)
            new = torch.logsumexp(belief.unsqueeze(-1) + self.J, -2).log_softmax(-1)
            m = 0.5 * m + 0.5 * new
        return (phi + torch.einsum("ji,jiq->iq", adj, m)).log_softmax(-1)


def seeded():
    return torch.Generator().manual_seed(33)


def graph():
    return torch.randn(10, 6, generator=seeded()), polygon()


def gcnii(num_layers=8):
    return GCNII(num_layers), graph()


def appnp(K=10):
    return APPNP(K), graph()


def egnn(rounds=6):
    numbers = torch.randint(0, 5, (2, 7), generator=seeded())
    return EGNN(rounds), {"numbers": numbers, "positions": torch.randn(2, 7, 3, generator=seeded())}


def perceiver(depth=9):
    return Perceiver(depth), torch.randn(3, 20, 4, generator=seeded())


def told():
    return {"points": torch.randn(2, 12, 3, generator=seeded()), "class": torch.tensor([1, 3])}


def labels(n_blocks=10):
    return Labels(n_blocks, 1 / n_blocks), told()


def labels_full(n_blocks=10):
    return Labels(n_blocks, 1.0), told()


def belief(bp_iters=8):
    return Potts(bp_iters), graph()


TRUTHS = {
    "gcnii": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=8,
        level="medium",
        kind="graph",
        watch="GCNII.forward:h",
        why="0.8 of a neighbours' mean, a part of the first features and a matrix of norm below 1: a contraction",
    ),
    "appnp": dict(
        codes=["not-looped"],
        loops=1,
        level="hard",
        kind="tying",
        watch="APPNP.forward:z",
        why="the iteration has no parameter in it; no weight acts twice",
    ),
    "egnn": dict(
        codes=[],
        loops=6,
        level="medium",
        kind="graph",
        watch="EGNN.visit:h",
        why="two states, both updated by 1/N",
    ),
    "perceiver": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=9,
        layers=1,
        level="easy",
        kind="reader",
        watch="Perceiver.forward:x",
        mend="attach",
        place={"unscaled-residual": ["x = x + self.latent_ff|latent_ff"]},
        why="three branches at full size in a shared layer",
    ),
    "labels": dict(
        codes=["unscaled-injection"],
        law="linear",
        loops=10,
        level="medium",
        kind="injection",
        watch="Labels.forward:x",
        mend="edit",
        place={"unscaled-injection": ["x += c|label"]},
        why="the class vector is added ten times, in place",
    ),
    "labels_full": dict(
        codes=["unscaled-injection", "unscaled-residual"],
        law="linear",
        loops=10,
        level="hard",
        kind="two faults",
        watch="Labels.forward:x",
        mend="edit",
        place={"unscaled-injection": ["x += c|label"], "unscaled-residual": ["x = x + self.ff|ff"]},
        why="the class vector and the branch, both at full size",
    ),
    "belief": dict(
        codes=[],
        other=["norm-bounded"],
        law="bounded",
        loops=8,
        level="hard",
        kind="graph",
        watch="Potts.forward:m",
        why="damped messages, normalised at every visit",
    ),
}
