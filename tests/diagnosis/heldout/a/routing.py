"""Experts and halting inside a loop."""

import torch
from torch import nn


def expert(d):
    return nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))


class Switch(nn.Module):
    """One expert a token, gathered and put back; the skip is in the caller."""

    def __init__(self, d=32, n=4):
        super().__init__()
        self.experts, self.gate = nn.ModuleList(expert(d) for _ in range(n)), nn.Linear(d, n, bias=False)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weight, chosen = self.gate(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for i, e in enumerate(self.experts):
            (rows,) = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                out.index_add_(0, rows, e(flat[rows]) * (weight[rows] / weight[rows].detach()).unsqueeze(-1))
        return out.view_as(x)


class Sparse(nn.Module):
    def __init__(self, loops=6, d=32, eps=None):
        super().__init__()
        self.emb, self.ln1, self.ln2, self.out = nn.Embedding(70, d), nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, 70)
        self.attn, self.moe = nn.MultiheadAttention(d, 4, batch_first=True), Switch(d)
        self.loops, self.eps = loops, eps

    def forward(self, ids):
        x = self.emb(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        scale = 1.0 if self.eps is None else self.eps / self.loops
        for _ in range(self.loops):
            n = self.ln1(x)
            x = x + scale * self.attn(n, n, n, attn_mask=mask, need_weights=False)[0]
            x = x + scale * self.moe(self.ln2(x))
        return self.out(x)


class PrivateRouters(nn.Module):
    """The experts are one bank for all visits, each visit routes by its own matrix."""

    def __init__(self, visits=5, d=32, n=3):
        super().__init__()
        self.emb, self.out = nn.Embedding(70, d), nn.Linear(d, 70)
        self.bank = nn.ModuleList(expert(d) for _ in range(n))
        self.routers = nn.ModuleList(nn.Linear(d, n) for _ in range(visits))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(visits))

    def forward(self, ids):
        x = self.emb(ids)
        for norm, router in zip(self.norms, self.routers):
            y = norm(x)
            mix = router(y).softmax(-1)
            made = torch.stack([e(y) for e in self.bank], -1)
            x = x + torch.einsum("btdn,btn->btd", made, mix) / len(self.routers)
        return self.out(x)


class Ponder(nn.Module):
    """Adaptive computation: visits end when the summed halting probability passes the threshold."""

    def __init__(self, max_steps=12, d=32):
        super().__init__()
        self.emb, self.norm, self.out, self.max_steps = (
            nn.Embedding(70, d),
            nn.LayerNorm(d),
            nn.Linear(d, 70),
            max_steps,
        )
        self.f, self.halt = expert(d), nn.Linear(d, 1)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, -0.8473)  # sigmoid: 0.3

    def forward(self, ids):
        x = self.emb(ids)
        total, read = torch.zeros(ids.shape), torch.zeros_like(x)
        for step in range(self.max_steps):
            x = x + self.f(self.norm(x)) / self.max_steps
            p = torch.sigmoid(self.halt(x)).squeeze(-1)
            last = (total + p >= 1) | torch.tensor(step == self.max_steps - 1)
            share = torch.where(last, 1 - total, p)
            read = read + share.unsqueeze(-1) * x
            total = total + p
            if bool((total >= 1).all()):
                break
        return self.out(read)


def switch(loops=9):
    return Sparse(loops)


def switch_scaled(loops=6):
    return Sparse(loops, eps=1.0)


def private_routers():
    return PrivateRouters()


def ponder(max_steps=12):
    return Ponder(max_steps)


TRUTHS = {
    "switch": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=9,
        layers=1,
        level="medium",
        kind="routing",
        watch="Sparse.forward:x",
        mend="attach",
        place={"unscaled-residual": ["x = x + scale * self.attn|attn", "x = x + scale * self.moe|moe"]},
        why="attention and experts at eps = 1; the routing changes with the stream",
    ),
    "switch_scaled": dict(
        codes=[], loops=6, layers=1, level="medium", kind="routing", watch="Sparse.forward:x", why="the same at 1/N"
    ),
    "private_routers": dict(
        codes=[],
        loops=5,
        layers=1,
        level="hard",
        kind="routing",
        watch="PrivateRouters.forward:x",
        why="routers and norms are private by design, the bank is shared, eps = 1/N",
    ),
    "ponder": dict(
        codes=["halts-early"],
        loops=4,
        layers=1,
        level="medium",
        kind="routing",
        watch="Ponder.forward:x",
        why="0.3 a visit reaches 1 at the 4th of 12 visits",
    ),
}
