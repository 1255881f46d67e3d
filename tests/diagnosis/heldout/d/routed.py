"""Tokens and experts that are chosen: mixture of recursions, experts by visit, steps that are skipped and remembered, pondering by position."""

import torch
import torch.nn.functional as F
from torch import nn


class MixAttention(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.heads, self.in_proj, self.out_proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.in_proj(x).chunk(3, -1))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class RecursionBlock(nn.Module):
    """Pre-norm block that gives its stream back, both branches times `eps`."""

    def __init__(self, d, eps=1.0):
        super().__init__()
        self.ln1, self.ln2, self.attn, self.eps = nn.LayerNorm(d), nn.LayerNorm(d), MixAttention(d), eps
        self.ffn = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        x = x + self.eps * self.attn(self.ln1(x))
        return x + self.eps * self.ffn(self.ln2(x))


class ExpertChoice(nn.Module):
    """MoR, expert choice: at each recursion a router takes the best tokens of those still in, gathers them, and adds what the block changed, weighed by the router."""

    def __init__(self, num_recursion=4, d=32, capacity=(1.0, 0.75, 0.5, 0.25)):
        super().__init__()
        self.embed_tokens, self.lm_head, self.ln = nn.Embedding(50, d), nn.Linear(d, 50), nn.LayerNorm(d)
        self.block, self.routers = (
            RecursionBlock(d),
            nn.ModuleList(nn.Linear(d, 1, bias=False) for _ in range(num_recursion)),
        )
        self.capacity, self.num_recursion = capacity, num_recursion

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        B, T, D = x.shape
        chosen = torch.arange(T).expand(B, T)
        for n, router in enumerate(self.routers):
            inside = x.gather(1, chosen[..., None].expand(-1, -1, D))
            weight = torch.sigmoid(router(inside)).squeeze(-1)
            order = weight.topk(max(1, int(self.capacity[n % len(self.capacity)] * T)), dim=1).indices.sort(1).values
            weight = weight.gather(1, order)
            chosen = chosen.gather(1, order)
            index = chosen[..., None].expand(-1, -1, D)
            sub = x.gather(1, index)
            delta = weight[..., None] * (self.block(sub) - sub) / self.num_recursion
            x = x.scatter_add(1, index, delta)
        return self.lm_head(self.ln(x))


class TokenChoice(nn.Module):
    """MoR, token choice: a router gives every token its depth at once; a token takes part as long as it has visits left. No factor anywhere."""

    def __init__(self, num_recursion=8, d=32):
        super().__init__()
        self.embed_tokens, self.lm_head, self.ln = nn.Embedding(50, d), nn.Linear(d, 50), nn.LayerNorm(d)
        self.block, self.router, self.num_recursion = RecursionBlock(d), nn.Linear(d, num_recursion), num_recursion
        for p in self.block.parameters():
            if p.ndim == 2:
                nn.init.xavier_normal_(p, gain=1.3)

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        depth = self.router(x).argmax(-1)
        depth[:, ::2] = self.num_recursion - 1
        for n in range(self.num_recursion):
            going = depth >= n
            new = x.clone()
            new[going] = self.block(x)[going]
            x = new
        return self.lm_head(self.ln(x))


class ExpertsByVisit(nn.Module):
    """One attention for all visits; of four MLPs each visit takes the one whose turn it is."""

    def __init__(self, n_visits=8, n_expert=4, d=32):
        super().__init__()
        self.embed_tokens, self.lm_head, self.n_visits = nn.Embedding(50, d), nn.Linear(d, 50), n_visits
        self.ln1, self.ln2, self.attn = nn.LayerNorm(d), nn.LayerNorm(d), MixAttention(d)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)) for _ in range(n_expert)
        )

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for n in range(self.n_visits):
            x = x + self.attn(self.ln1(x)) / self.n_visits
            x = x + self.experts[n % len(self.experts)](self.ln2(x)) / self.n_visits
        return self.lm_head(x)


class Remembered(nn.Module):
    """Feature caching over steps: the block is run at every third step, in between its last update is used again."""

    def __init__(self, num_steps=12, every=3, rate=None, gain=1.0, d=32):
        super().__init__()
        self.embed_tokens, self.lm_head, self.ln = nn.Embedding(50, d), nn.Linear(d, 50), nn.LayerNorm(d)
        self.net = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
        nn.init.xavier_normal_(self.net[1].weight, gain=gain), nn.init.xavier_normal_(self.net[3].weight, gain=gain)
        self.num_steps, self.every, self.rate = num_steps, every, 1 / num_steps if rate is None else rate

    def forward(self, input_ids):
        x, cached = self.embed_tokens(input_ids), None
        for step in range(self.num_steps):
            if step % self.every == 0:
                cached = self.net(x)
            x = x + self.rate * cached
        return self.lm_head(self.ln(x))


class Pondering(nn.Module):
    """A Universal Transformer with ACT by position (remainders, running weighted mean), as in the much-copied PyTorch version: coordinates are added to the state at every hop, the layer is pre-norm."""

    def __init__(self, max_hops=10, d=32, threshold=0.9, bias=-1.5):
        super().__init__()
        self.emb, self.out, self.max_hops, self.threshold = nn.Embedding(50, d), nn.Linear(d, 50), max_hops, threshold
        self.halt, self.layer = nn.Linear(d, 1), RecursionBlock(d)
        for q in self.layer.parameters():
            if q.ndim == 2:
                nn.init.xavier_normal_(q, gain=1.5)
        nn.init.constant_(self.halt.bias, bias), nn.init.normal_(self.halt.weight, std=0.01)
        place = torch.arange(64)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)
        self.register_buffer("signal", torch.stack([place.sin(), place.cos()], -1).flatten(1))

    def forward(self, ids):
        state = self.emb(ids)
        halting = torch.zeros(ids.shape)
        remainders, n_updates, previous = torch.zeros(ids.shape), torch.zeros(ids.shape), torch.zeros_like(state)
        step = 0
        while ((halting < self.threshold) & (n_updates < self.max_hops)).any():
            state = state + self.signal[None, : ids.shape[1]]
            state = state + self.signal[None, step : step + 1]
            p = torch.sigmoid(self.halt(state)).squeeze(-1)
            running = (halting < 1.0).float()
            new_halted = (halting + p * running > self.threshold).float() * running
            running = (halting + p * running <= self.threshold).float() * running
            halting = halting + p * running
            remainders = remainders + new_halted * (1 - halting)
            halting = halting + new_halted * remainders
            n_updates = n_updates + running + new_halted
            weights = (p * running + new_halted * remainders).unsqueeze(-1)
            state = self.layer(state)
            previous = state * weights + previous * (1 - weights)
            step += 1
        return self.out(previous), (remainders, n_updates)


def expert_choice():
    return ExpertChoice()


def token_choice(num_recursion=8):
    return TokenChoice(num_recursion)


def by_visit(n_visits=8):
    return ExpertsByVisit(n_visits)


def remembered(num_steps=12):
    return Remembered(num_steps)


def remembered_full(num_steps=12):
    return Remembered(num_steps, rate=1.0, gain=1.5)


def pondering():
    return Pondering()


TRUTHS = {
    "expert_choice": dict(
        codes=[],
        loops=4,
        layers=1,
        level="hard",
        kind="routing",
        watch="ExpertChoice.forward:x",
        why="a quarter of what the block changes, for the tokens that are still in",
    ),
    "token_choice": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="hard",
        kind="routing",
        watch="TokenChoice.forward:x",
        place={"unscaled-residual": ["x = x + self.eps * self.attn|attn", "return x + self.eps * self.ffn|ffn"]},
        why="every second token makes all eight visits at full size",
    ),
    "by_visit": dict(
        codes=[],
        loops=8,
        level="medium",
        kind="routing",
        watch="ExpertsByVisit.forward:x",
        why="1/N; every expert acts twice, the attention eight times",
    ),
    "remembered": dict(
        codes=[],
        level="hard",
        kind="cache",
        watch="Remembered.forward:x",
        why="twelve additions by 1/12 of four updates; whether N is 4 or 12 is open",
    ),
    "remembered_full": dict(
        codes=["unscaled-residual"],
        law="linear",
        level="hard",
        kind="cache",
        watch="Remembered.forward:x",
        place={"unscaled-residual": ["x = x + self.rate * cached|net"]},
        why="each of four updates is added three times at full size",
    ),
    "pondering": dict(
        codes=["halts-early", "unscaled-injection", "unscaled-residual"],
        level="hard",
        kind="halting",
        watch="Pondering.forward:state",
        why="coordinates of size 1 and a layer of eps 1 at each hop; all tokens halt before the tenth",
    ),
}
